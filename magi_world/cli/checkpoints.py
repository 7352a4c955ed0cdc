"""The verb `make-checkpoint`: random weights in MAGI-1's published layout."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from magi_world.cli.output import emit_json, emit_pairs, say
from magi_world.cli.worlds import AsJson
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


def check_disk(folder: Path, nbytes: int) -> None:
    """Refuse to write more than the disk has room for.

    Raises:
        ConfigError: how much is needed and how much there is.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if nbytes > free:
        raise ConfigError(
            f"{folder} needs {nbytes / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB left"
        )
