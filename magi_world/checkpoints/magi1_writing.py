"""MAGI-1's published layout, written: configuration, weights, VAE, text encoder, table."""

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor, nn

from magi_world.checkpoints.magi1_format import T5_FOLDER, TABLE, VAE_CLASS, VAE_WEIGHTS
from magi_world.checkpoints.published_config import PublishedConfig, write_published_config
from magi_world.checkpoints.safetensors_stream import Source, write_stream
from magi_world.checkpoints.shards import SHARD_BYTES, Progress, write_shards
from magi_world.checkpoints.tensors import compact
from magi_world.config import VAEConfig, WorldConfig
from magi_world.disk import write_text
from magi_world.errors import CheckpointError, ConfigError

CONFIG = "config.json"
VAE_FOLDER, TEXT_FOLDER = "vae", "t5"
_FORMAT = {"format": "pt"}  # what other readers of safetensors look for

# keys of the published `ddconfig` that VAEConfig does not have, at the values of its constructor
_NEUTRAL = {
    "qk_scale": None, "drop_rate": 0.0, "attn_drop_rate": 0.0, "drop_path_rate": 0.0,
}  # fmt: skip


def published_config(config: WorldConfig) -> PublishedConfig:
    """The configuration file of a world that is a MAGI-1 checkpoint.

    Raises:
        ConfigError: another world.
    """
    if config.magi1 is None:
        raise ConfigError("only a MAGI-1 checkpoint can be written in the published layout")
    return PublishedConfig(
        dit=config.dit,
        magi1=config.magi1,
        height=config.height,
        width=config.width,
        load=".",
        t5_pretrained="" if config.text is None else TEXT_FOLDER,
        vae_pretrained=VAE_FOLDER,
    )


def write_checkpoint(
    folder: Path,
    config: PublishedConfig,
    dit: Iterable[Source],
    vae: VAEConfig,
    vae_weights: Iterable[Source],
    *,
    text_folder: Path | None = None,
    special_tokens: Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    compress: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a whole checkpoint; the configuration comes last, so half a folder is none.

    Args:
        folder: made if absent.
        config: its places are replaced by those of this layout.
        dit: tensors of the DiT.
        vae: configuration of the VAE.
        vae_weights: its tensors.
        text_folder: a T5 folder to copy, None for a checkpoint without text encoder.
        special_tokens: the table to copy.
        shard_bytes: size of a shard of the DiT.
        compress: write the DiT's shards with ``.zst``.
        progress: told the bytes of the DiT that have been written.

    Raises:
        CheckpointError: a folder that holds a checkpoint already.
        MissingPackage: ``compress`` without zstandard.
    """
    check_target(folder)
    text = "" if text_folder is None else TEXT_FOLDER
    config = replace(config, load=".", vae_pretrained=VAE_FOLDER, t5_pretrained=text)
    write_shards(
        dit,
        folder / config.weight_folder,
        shard_bytes=shard_bytes,
        compress=compress,
        metadata=_FORMAT,
        progress=progress,
    )
    write_vae(folder / VAE_FOLDER, vae, vae_weights)
    if text_folder is not None:
        copy_files(text_folder, folder / TEXT_FOLDER / T5_FOLDER)
    if special_tokens is not None:
        copy_file(special_tokens, folder / TABLE)
    write_published_config(config, folder / CONFIG)


def check_target(folder: Path) -> None:
    """Refuse a folder that holds a checkpoint already.

    Raises:
        CheckpointError: it does.
    """
    if (folder / CONFIG).exists():
        raise CheckpointError(f"{folder} holds a checkpoint already; choose another folder")


def write_vae(folder: Path, config: VAEConfig, sources: Iterable[Source]) -> None:
    """Write a VAE folder."""
    write_stream(folder / VAE_WEIGHTS, list(sources), _FORMAT)
    document = {
        "_class_name": VAE_CLASS,
        "ddconfig": {**asdict(config), **_NEUTRAL},
        "model_type": "vit",
    }
    _write_json(document, folder / "config.json")


def module_sources(module: nn.Module) -> list[Source]:
    """The tensors of a model as they are stored: parameters in bfloat16 where that is exact.

    The values are converted when they are written, one tensor at a time. Buffers, which are the
    weights and scales of FP8 linears, stay as they are.
    """
    parameters = {name for name, _ in module.named_parameters()}
    return [
        _stored(name, tensor) if name in parameters else Source.of(name, tensor)
        for name, tensor in module.state_dict().items()
    ]


def _stored(name: str, tensor: Tensor) -> Source:
    dtype = compact(tensor).dtype
    return Source(name, dtype, tuple(tensor.shape), lambda: tensor.to(dtype))


def copy_files(source: Path, folder: Path) -> None:
    """Copy the files of a flat folder; they appear one by one, each whole."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file():
            copy_file(path, folder / path.name)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file under a temporary name, then rename it; onto itself nothing happens."""
    if target.exists() and target.samefile(source):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".partial")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _write_json(document: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(document, indent=2) + "\n")
