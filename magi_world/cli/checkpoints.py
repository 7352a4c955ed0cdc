"""Verbs around MAGI-1 checkpoints: `make-checkpoint` and `calibrate`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from magi_world.cli.output import emit_json, emit_pairs, emit_table, say
from magi_world.cli.worlds import AsJson, Device, DType
from magi_world.disk import check_disk, write_text
from magi_world.errors import ConfigError

_UNITS = {"GB": 10**9, "MB": 10**6, "KB": 10**3, "B": 1}


def make_checkpoint(
    out: Annotated[
        Path | None, typer.Argument(help="Folder to write; absent with --meta.", show_default=False)
    ] = None,
    preset: Annotated[
        str, typer.Option(help="tiny[-distill[-fp8]] or magi1-4.5b, magi1-24b, also with them.")
    ] = "tiny",
    config: Annotated[
        Path | None,
        typer.Option(help="A configuration file with MAGI-1's three sections, for any size."),
    ] = None,
    vae: Annotated[
        Path | None, typer.Option(help="A VAE folder whose config.json is taken over.")
    ] = None,
    text: Annotated[
        bool, typer.Option("--text/--no-text", help="Also make a text encoder and its table.")
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Seeds the weights.")] = 0,
    shard_size: Annotated[str, typer.Option(help="Largest shard, such as 5GB or 500KB.")] = "5GB",
    zst: Annotated[bool, typer.Option("--zst", help="Compress the shards of the DiT.")] = False,
    meta: Annotated[
        bool, typer.Option("--meta", help="Count parameters only; nothing is allocated or written.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make a checkpoint with random weights, as the published ones are laid out.

    It loads and generates like a real one, noise instead of pictures: for tests, for measuring
    speed and memory, and for looking at the layout.
    """
    from magi_world.checkpoints.magi1_format import read_vae_config
    from magi_world.checkpoints.progress import progress_bar
    from magi_world.checkpoints.published_config import read_published_config
    from magi_world.checkpoints.random_presets import random_like, random_preset

    if meta == (out is not None):
        raise ConfigError("either a folder to write is needed, or --meta, which writes nothing")
    shard_bytes = parse_bytes(shard_size)
    chosen_vae = None if vae is None else read_vae_config(vae)
    if config is not None:
        checkpoint = random_like(read_published_config(config), chosen_vae)
    else:
        checkpoint = random_preset(preset)
        if chosen_vae is not None:
            checkpoint = replace(checkpoint, vae=chosen_vae)
    if not text:
        checkpoint = replace(checkpoint, t5=None)
    summary = checkpoint.summary()
    if out is not None:
        check_disk(out, summary["bytes_on_disk"])
        with progress_bar("writing the DiT", summary["bytes"]) as told:
            checkpoint.write(out, seed=seed, shard_bytes=shard_bytes, compress=zst, progress=told)
        say(f"wrote {out}")
    if as_json:
        emit_json(summary)
    else:
        emit_pairs({name: f"{value:,}" for name, value in summary.items()})


def parse_bytes(size: str) -> int:
    """Read "5GB" or "500KB".

    Raises:
        ConfigError: another form, or nothing.
    """
    for unit, factor in _UNITS.items():
        number = size.upper().removesuffix(unit)
        if number != size.upper() and number.strip().isdecimal() and int(number) > 0:
            return int(number) * factor
    raise ConfigError(f"size {size!r}: a whole number and one of {', '.join(_UNITS)} is needed")


def calibrate(
    model: Annotated[str, typer.Option(help="A distilled checkpoint in bfloat16.")],
    out: Annotated[Path, typer.Option(help="Folder for the FP8 checkpoint.")],
    prompts: Annotated[Path, typer.Option(help="Prompts of the calibration set, one a line.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of pictures that some of the videos begin with.")
    ] = None,
    image_share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of such videos.")
    ] = 0.3,
    alpha: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Migration strength of SmoothQuant.")
    ] = 0.45,
    frames: Annotated[
        int | None, typer.Option(min=1, help="New frames a video; the checkpoint's by default.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH; the checkpoint's by default.")
    ] = None,
    checked: Annotated[
        int, typer.Option(min=1, help="Videos that the errors are measured on.")
    ] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Draws steps, noise and images.")] = 0,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Quantise a distilled checkpoint to FP8 and say what that costs, layer by layer.

    Activations are observed while videos are generated, outliers are smoothed into the weights
    (SmoothQuant), and the published FP8 layout is written, with the errors in calibration.json.
    """
    import json

    from magi_world.calibration import session
    from magi_world.checkpoints.magi1_writing import check_target
    from magi_world.media.reading import read_image
    from magi_world.size import parse_size
    from magi_world.world import load

    check_target(out)
    texts = session.read_prompts(prompts)
    files = [] if images is None else picture_files(images)
    world = load(model, device=device, dtype=dtype)
    if size is not None:
        world = world.resized(*parse_size(size))
    magi1 = session.check_calibratable(world.config, world.dit, alpha)
    check_disk(out, sum(p.numel() for p in world.dit.parameters()) * 2)
    height, width = world.config.height, world.config.width
    pictures = [read_image(file, height, width) for file in files]
    videos = session.plan_videos(magi1, texts, pictures, seed=seed, image_share=image_share)
    result = session.calibrate(
        world, videos, alpha=alpha, num_frames=frames, checked=checked, say=say
    )
    result.world.save(out, layout="magi-1")
    report = {**result.report(), "videos": len(videos)}
    write_text(out / "calibration.json", json.dumps(report, indent=2) + "\n")
    say(f"wrote {out}")
    if as_json:
        emit_json(report)
        return
    print("relative L2 error against the unquantised linears, and share of clipped inputs")
    emit_table(result.layers, tuple(result.layers[0]))
    print("\nrelative L2 error of whole videos from the same noise")
    emit_table(
        [{"video": i, "error": error} for i, error in enumerate(result.latents)],
        ("video", "error"),
    )


def picture_files(folder: Path) -> list[Path]:
    """The files of a folder, by name.

    Raises:
        ConfigError: no such folder, or none in it.
    """
    files = sorted(path for path in folder.glob("*") if path.is_file())
    if not files:
        raise ConfigError(f"images {folder} is no folder with pictures")
    return files
