"""Between MAGI-1 checkpoints on disk and worlds in memory, in both layouts.

A world's own layout keeps a checkpoint in one folder: `world.json`, `dit.safetensors`,
`vae.safetensors`, `t5/` and `special_tokens.npz`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from magi_world.checkpoints.magi1_format import TABLE, Magi1Checkpoint, find_checkpoint
from magi_world.checkpoints.magi1_writing import (
    TEXT_FOLDER,
    copy_file,
    copy_files,
    module_sources,
    published_config,
    write_checkpoint,
)
from magi_world.checkpoints.safetensors_stream import write_stream
from magi_world.checkpoints.shards import open_shards
from magi_world.config import WorldConfig
from magi_world.errors import CheckpointError, ConfigError
from magi_world.magi1_config import T5Config

if TYPE_CHECKING:
    from magi_world.text.encoder import Idle, T5PromptEncoder
    from magi_world.text.special_tokens import TokenOptions

Layout = Literal["world", "magi-1"]
LAYOUTS = ("world", "magi-1")
DEFAULT_CACHE = "default"


@dataclass(frozen=True, kw_only=True)
class Magi1Parts:
    """Where the parts of a MAGI-1 checkpoint are, and how its prompts are encoded.

    Every field has a default that suits the published repository.
    """

    config: Path | str | None = None
    """the configuration file, when the folder holds none or several"""
    vae: Path | str | None = None
    """folder of the VAE; None takes what the configuration names, else one nearby"""
    text: Path | str | None = None
    """the same for T5"""
    special_tokens: Path | str | None = None
    """the table; None takes a `special_tokens.npz` nearby, if there is one"""
    options: "TokenOptions | None" = None
    """special tokens in front of every prompt; None for none"""
    prompt_cache: Path | str | None = DEFAULT_CACHE
    """folder of encoded prompts; "default" is the user's cache folder, None keeps none"""
    text_device: str | torch.device | None = None
    """where T5 runs; None: with the world if the configuration says "cuda", else on the CPU"""
    text_idle: "Idle" = "keep"
    """what happens to T5 between prompts: "keep", "out" to host memory, or "drop" """


def find_published(path: Path, parts: Magi1Parts) -> tuple[Magi1Checkpoint, dict[str, Any]]:
    """Find a checkpoint in the published layout; return it and a card for it.

    Raises:
        CheckpointError, ConfigError: as
            :func:`magi_world.checkpoints.magi1_format.find_checkpoint`.
    """
    checkpoint = find_checkpoint(
        path,
        config=_path(parts.config),
        vae=_path(parts.vae),
        text=_path(parts.text),
        special_tokens=_path(parts.special_tokens),
    )
    return checkpoint, magi1_card(checkpoint.name, checkpoint.world_config())


def find_saved(
    folder: Path, card: dict[str, Any], parts: Magi1Parts
) -> tuple[Magi1Checkpoint, dict[str, Any]]:
    """Find a checkpoint in a world's own layout; return it and its card.

    Raises:
        CheckpointError: a part is absent or damaged.
        ConfigError: the configuration in the card cannot work.
    """
    config = WorldConfig.from_dict(card["config"])
    text = _path(parts.text) or folder / TEXT_FOLDER
    table = _path(parts.special_tokens) or folder / TABLE
    if isinstance(config.text, T5Config) and not text.is_dir():
        raise CheckpointError(f"there is no text encoder {text}")
    checkpoint = Magi1Checkpoint(
        name=str(card["name"]),
        config=published_config(config),
        weights=open_shards(folder, "dit.safetensors"),
        vae=config.vae,
        vae_weights=open_shards(folder, "vae.safetensors"),
        text_folder=None if config.text is None else text,
        special_tokens=table if table.is_file() else None,
    )
    return checkpoint, card


def magi1_card(name: str, config: WorldConfig) -> dict[str, Any]:
    """The card of a checkpoint: no game stands behind it, so every prompt is allowed."""
    return {
        "name": name,
        "game": "",
        "description": "A MAGI-1 checkpoint.",
        "prompts": [],
        "fps": config.fps,
        "horizon": None,
        "reward_range": [0.0, 0.0],
        "config": config.to_dict(),
    }


def prompt_encoder(
    checkpoint: Magi1Checkpoint, config: WorldConfig, parts: Magi1Parts, device: torch.device
) -> "T5PromptEncoder | None":
    """The prompt encoder of a checkpoint; T5's weights are read when they are needed.

    Raises:
        CheckpointError: a file of it is absent or does not fit.
        ConfigError: special tokens without their table.
        MissingPackage: sentencepiece is absent.
    """
    if checkpoint.text_folder is None or not isinstance(config.text, T5Config):
        return None
    from magi_world.text.cache import default_folder
    from magi_world.text.encoder import T5PromptEncoder
    from magi_world.text.special_tokens import SpecialTokens

    width, table = config.dit.caption_channels, checkpoint.special_tokens
    cache = default_folder() if parts.prompt_cache == DEFAULT_CACHE else parts.prompt_cache
    magi1 = checkpoint.config.magi1
    beside = device if magi1.t5_device.startswith("cuda") else torch.device("cpu")
    return T5PromptEncoder(
        checkpoint.text_folder,
        caption_channels=width,
        max_tokens=config.text.max_tokens,
        special_tokens=None if table is None else SpecialTokens.load(table, width),
        options=parts.options,
        cache=cache,
        device=beside if parts.text_device is None else parts.text_device,
        idle=parts.text_idle,
    )


def default_dtype(config: WorldConfig, device: torch.device) -> str:
    """The dtype that a checkpoint runs in where nobody asks for one."""
    fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return "bfloat16" if fast and config.dit.params_dtype == "bfloat16" else "float32"


def save_magi1(
    folder: Path,
    config: WorldConfig,
    modules: dict[str, nn.Module],
    *,
    text_folder: Path | None,
    special_tokens: Path | None,
    layout: Layout,
) -> None:
    """Write weights, text encoder and table; with "magi-1" the configuration too.

    Weights are written in bfloat16 where that changes no value, else as they are.

    Raises:
        CheckpointError: "magi-1" into a folder that holds a checkpoint already.
        ConfigError: another layout, or not a MAGI-1 checkpoint.
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"layout {layout!r} is not one of {LAYOUTS}")
    if layout == "magi-1":
        write_checkpoint(
            folder,
            published_config(config),
            module_sources(modules["dit"]),
            config.vae,
            module_sources(modules["vae"]),
            text_folder=text_folder,
            special_tokens=special_tokens,
        )
        return
    for name, module in modules.items():
        write_stream(folder / f"{name}.safetensors", module_sources(module), {"part": name})
    if text_folder is not None:
        copy_files(text_folder, folder / TEXT_FOLDER)
    if special_tokens is not None:
        copy_file(special_tokens, folder / TABLE)


def _path(path: Path | str | None) -> Path | None:
    return None if path is None else Path(path)
