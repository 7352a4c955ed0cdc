"""The verb `generate`: a video from text, after an image or after a video."""

from pathlib import Path
from typing import Annotated

import typer

from magi_world.cli.output import emit_json, emit_pairs
from magi_world.cli.worlds import AsJson, Device, DType

INTERRUPTED = 130
"""exit code of a program that was stopped by Ctrl-C"""


def generate(
    model: Annotated[
        str, typer.Option(help="A checkpoint's folder or configuration file, or hub:org/name.")
    ],
    out: Annotated[Path, typer.Option(help="The .mp4 file; it grows chunk by chunk.")],
    *,
    prompt: Annotated[str | None, typer.Option(help="One text for the whole video.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="A file: one line a chunk, or lines `from-second: prompt`."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(help="A picture that the video begins with.")
    ] = None,
    video: Annotated[Path | None, typer.Option(help="A video to be continued.")] = None,
    video_seconds: Annotated[
        float | None, typer.Option(help="Use only the last seconds of the video.")
    ] = None,
    fit: Annotated[
        str, typer.Option(help="How pictures get the size: stretch, crop or pad.")
    ] = "stretch",
    seconds: Annotated[
        float | None, typer.Option(help="Length; by the prompts or the model by default.")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH; the model's own by default.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps a chunk.")] = None,
    window: Annotated[
        int | None, typer.Option(help="Chunks denoised together; it divides the steps.")
    ] = None,
    kv_range: Annotated[
        str | None,
        typer.Option(help="Chunks seen per noise stage, noisiest first, such as 5,4,3,2."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seeds the noise.")] = None,
    quality: Annotated[str | None, typer.Option(help="Special token: hq.")] = None,
    duration: Annotated[
        str | None, typer.Option(help="Special token: auto counts chunks left, or 1 to 8.")
    ] = None,
    style: Annotated[
        list[str] | None, typer.Option(help="Special token: 3d or anime; again for both.")
    ] = None,
    opening: Annotated[
        list[str] | None, typer.Option(help="Special token: static or dynamic first frames.")
    ] = None,
    borders: Annotated[bool, typer.Option("--borders", help="Special token: borders.")] = False,
    negative: Annotated[
        bool, typer.Option("--negative", help="Lead away from captions, logos, cuts, borders.")
    ] = False,
    special_tokens: Annotated[
        Path | None, typer.Option(help="special_tokens.npz, where it is not nearby.")
    ] = None,
    t5: Annotated[Path | None, typer.Option(help="T5 folder, where it is not nearby.")] = None,
    vae: Annotated[Path | None, typer.Option(help="VAE folder, where it is not nearby.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Configuration file, where the folder has several.")
    ] = None,
    compat: Annotated[
        str | None, typer.Option(help="magi-1: as the published code, defects included.")
    ] = None,
    offload: Annotated[
        list[str] | None,
        typer.Option(help="kv, layers or idle: kept in host memory; again for several."),
    ] = None,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Generate a video with a MAGI-1 checkpoint, or with any world.

    Everything is checked before the first step: files, prompts, sizes, disk, memory, packages and
    the encoder. Each chunk is in the file as soon as it is finished. Ctrl-C stops behind the last
    one; even a process that is killed leaves a file that plays.
    """
    from magi_world.cli.generate_request import Request
    from magi_world.cli.generating import Job

    request = Request(
        model=model, out=out, prompt=prompt, prompts=prompts, image=image, video=video,
        video_seconds=video_seconds, fit=fit, seconds=seconds, size=size, num_steps=steps,
        window=window, kv_range=kv_range, seed=seed, quality=quality, duration=duration,
        style=tuple(style or ()), opening=tuple(opening or ()), borders=borders,
        negative=negative, special_tokens=special_tokens, t5=t5, vae=vae, config=config,
        compat=compat, offload=tuple(offload or ()), device=device, dtype=dtype,
    )  # fmt: skip
    result = Job(request).run()
    if as_json:
        emit_json(result)
    else:
        lists = ("chunk_seconds", "chunk_memory_bytes")
        emit_pairs({name: value for name, value in result.items() if name not in lists})
    if result["stopped"]:
        raise typer.Exit(INTERRUPTED)
