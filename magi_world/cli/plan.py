"""The verb `plan`: what a model takes, before it is run."""

from typing import Annotated, Any

import typer

from magi_world.cli.measuring import parse_counts
from magi_world.cli.output import emit_json, emit_pairs, emit_table, say
from magi_world.cli.worlds import AsJson

CARDS_GIB = (12, 24, 32, 48, 80, 141)
"""memory of usual cards"""

GIB = 2**30


def plan(
    model: Annotated[
        str,
        typer.Option(
            help="A checkpoint's folder, or magi1-4.5b, magi1-24b, with -distill or -distill-fp8."
        ),
    ],
    *,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH; the model's own by default.")
    ] = None,
    window: Annotated[int | None, typer.Option(help="Chunks denoised together.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps a chunk.")] = None,
    cfg: Annotated[int | None, typer.Option(help="Model passes a step: 1 or 3.")] = None,
    kv_range: Annotated[
        str | None, typer.Option(help="Chunks seen per noise stage, such as 5,4,3,2.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 or float32.")] = None,
    gpus: Annotated[int, typer.Option(help="Devices that share a video.")] = 1,
    pipeline: Annotated[
        int, typer.Option(help="Groups of devices, each with a part of the layers.")
    ] = 1,
    offload: Annotated[
        list[str] | None, typer.Option(help="kv or layers: kept in host memory; again for both.")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(help="GiB of a device; usual cards by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what a model takes: tokens, arithmetic and memory of a chunk, and whether it fits.

    Memory is that of one device, beside what PyTorch itself takes. More than one device splits
    tokens and key-value heads between the devices of a group, and layers between groups, as the
    published engine does; this package computes on one.
    """
    from magi_world.errors import ConfigError
    from magi_world.planning.model import preset_or_model, resized
    from magi_world.planning.plan import PlanRequest, make_plan
    from magi_world.size import parse_size

    moved = set(offload or [])
    if not moved <= {"kv", "layers"}:
        raise ConfigError(f"--offload {sorted(moved - {'kv', 'layers'})}: kv or layers is needed")
    if gpu_memory is not None and not 0 < gpu_memory < 1e6:
        raise ConfigError(f"--gpu-memory {gpu_memory}: a number of GiB above 0 is needed")
    request = PlanRequest(
        window=window,
        num_steps=steps,
        cfg_number=cfg,
        kv_ranges=None if kv_range is None else parse_counts(kv_range, "--kv-range"),
        dtype=dtype,
        gpus=gpus,
        pipeline=pipeline,
        offload_kv="kv" in moved,
        offload_layers="layers" in moved,
    )
    pixels = None if size is None else parse_size(size)
    found = preset_or_model(model)
    made = make_plan(resized(found.config, pixels), request)
    cards = CARDS_GIB if gpu_memory is None else (gpu_memory,)
    fits = {f"{card:g} GiB": made.fits(int(card * GIB)) for card in cards}
    if as_json:
        emit_json({"model": found.name, **made.to_dict(), "fits": fits})
        return
    emit_pairs(_described(found.name, made))
    print()
    memory = made.to_dict()["memory"]
    emit_table(
        [{"each device": name, "GiB": round(value / GIB, 2)} for name, value in memory.items()],
        ("each device", "GiB"),
    )
    if made.host_bytes:
        print(f"in host memory {made.host_bytes / GIB:.2f} GiB")
    print()
    emit_table(
        [{"device": card, "fits": "yes" if fit else "no"} for card, fit in fits.items()],
        ("device", "fits"),
    )
    if found.config.magi1 is not None:
        say("the text encoder stands on the host and is not counted")


def _described(name: str, made: Any) -> dict[str, Any]:
    """The lines in front of the table."""
    passes = f"{made.chunk_passes} forwards, the published code runs {made.chunk_passes_published}"
    peta = f"{made.flops_per_chunk / 1e15:.4g} PFLOP"
    return {
        "model": name,
        "parameters": f"{made.parameters:,}",
        "frames": f"{made.height}x{made.width}, {made.fps} a second",
        "tokens per chunk": f"{made.tokens_per_chunk:,} ({made.frames_per_chunk} frames)",
        "window, steps, passes": f"{made.window}, {made.num_steps}, {made.cfg_number}",
        "KV ranges": ", ".join(map(str, made.kv_ranges)),
        "dtype": made.dtype,
        "devices": f"{made.gpus} in {made.pipeline} groups" if made.pipeline > 1 else made.gpus,
        "a chunk takes": passes,
        "arithmetic per chunk": f"{peta} ({made.flops_per_chunk_all_passes / 1e15:.4g} unsaved)",
        "keys and values": f"{made.kv_bytes_per_chunk / 2**20:.1f} MiB a chunk, "
        f"{made.kv_chunks} chunks",
    }
