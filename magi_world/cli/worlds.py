"""Verbs that show worlds: `worlds` lists them, `rollout` films one."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from magi_world.cli.output import emit_json, emit_pairs, emit_table, say

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

WorldName = Annotated[str, typer.Argument(help="A world's name, or a folder with one.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Denoising steps a chunk; the world's own by default.")
]
Temperature = Annotated[float, typer.Option(min=0.0, help="Scale of the initial noise.")]
Device = Annotated[str | None, typer.Option(help="Where the world runs, such as cpu or cuda.")]
DType = Annotated[str | None, typer.Option(help="Such as float32 or bfloat16.")]


def worlds(as_json: AsJson = False) -> None:
    """List the worlds that ship with the package."""
    import json

    from magi_world.worlds import available, folder

    rows = []
    for name in available():
        path = folder(name)
        if path is not None:
            card = json.loads((path / "world.json").read_text(encoding="utf-8"))
            rows.append({key: card.get(key) for key in ("name", "game", "prompts", "description")})
    if as_json:
        emit_json(rows)
    else:
        shown = [row | {"prompts": " | ".join(row["prompts"] or [])} for row in rows]
        emit_table(shown, ("name", "game", "prompts"))
    say(f"{len(rows)} worlds")


def rollout(
    world: WorldName = "doom-take-cover",
    *,
    out: Annotated[
        Path, typer.Option(help="An .mp4 file, or a folder that gets rollout.mp4.")
    ] = Path("rollout.mp4"),
    prompts: Annotated[
        list[str] | None,
        typer.Option(help="Text to play; give it again for more, played in turn. Random without."),
    ] = None,
    hold: Annotated[int, typer.Option(min=1, help="Chunks for which each prompt is held.")] = 1,
    chunks: Annotated[int, typer.Option(min=1, help="Chunks to generate.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the noise and the random prompts.")] = 0,
    steps: Steps = None,
    temperature: Temperature = 1.0,
    scale: Annotated[int, typer.Option(min=1, help="Video pixels a world's pixel.")] = 6,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Generate one rollout and write it as a video.

    It goes on for all chunks, also where the world says that the episode is over.

    Example: magi-world rollout doom-take-cover --prompts "strafe left" --prompts "go right!"
    """
    import numpy as np
    from rich.console import Console
    from rich.progress import track

    from magi_world.evaluation.video import enlarge, write_mp4
    from magi_world.players import chunk_prompts
    from magi_world.world import load

    loaded = load(world, device=device, dtype=dtype)
    names = chunk_prompts(loaded.card)
    if prompts:
        said = [prompts[index // hold % len(prompts)] for index in range(chunks)]
    else:
        drawn = np.random.default_rng(seed).integers(len(names), size=-(-chunks // hold))
        said = [names[drawn[index // hold]] for index in range(chunks)]
    for prompt in prompts or []:
        loaded.check_prompt(prompt)
    path = out if out.suffix == ".mp4" else out / "rollout.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)

    played = loaded.rollout(1, seeds=[seed], steps=steps, temperature=temperature)
    result: dict[str, Any] = {
        "out": str(path), "chunks": chunks, "return": 0.0, "terminated_at": None, "seed": seed,
    }  # fmt: skip

    def film() -> "Iterator[npt.NDArray[np.uint8]]":
        yield from enlarge(played.reset().frames[0].cpu().numpy(), scale)
        shown = track(said, description="dreaming", console=Console(stderr=True), transient=True)
        for index, prompt in enumerate(shown, start=1):
            chunk = played.step([prompt])
            if result["terminated_at"] is None:
                result["return"] = result["return"] + chunk.reward[0].cpu().numpy().astype(float)
                if bool(chunk.terminated[0]):
                    result["terminated_at"] = index
            yield from enlarge(chunk.frames[0].cpu().numpy(), scale)

    result["frames"] = write_mp4(path, film(), loaded.config.fps)
    result["return"] = np.asarray(result["return"]).tolist()  # a list, one a player, or a number
    if as_json:
        emit_json(result)
    else:
        emit_pairs(result)
