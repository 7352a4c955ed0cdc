"""Recipes: one TOML file a world with its card, its configuration and its three stages."""

import math
import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from magi_world.checkpoints.world_format import check_card
from magi_world.config import WorldConfig
from magi_world.errors import CheckpointError, ConfigError, RecipeError
from magi_world.training.loop import StageSettings


@dataclass(frozen=True, kw_only=True)
class VAESettings(StageSettings):
    """Stage 1."""

    kl_weight: float = 2e-5
    motion_weight: float = 3.0


@dataclass(frozen=True, kw_only=True)
class DiTSettings(StageSettings):
    """Stage 2; ``batch_size`` counts sequences."""

    sequence: int = 16
    caption_dropout: float = 0.1
    history_noise: float = 0.05
    own_history: float = 0.0
    """share of the batches whose history is in part the model's own"""
    copies: int = 1
    """noisy copies of every chunk"""
    paraphrases: int = 4


@dataclass(frozen=True, kw_only=True)
class OutcomeSettings(StageSettings):
    """Stage 3; ``batch_size`` counts chunks."""

    chunks: int = 24_000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A world's recipe."""

    path: Path
    card: dict[str, Any]
    config: WorldConfig
    vae: VAESettings
    dit: DiTSettings
    outcome: OutcomeSettings


def available() -> list[str]:
    """Names of the recipes that the package ships."""
    folder = resources.files("magi_world.training") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path, **overrides: dict[str, Any]) -> Recipe:
    """Read a recipe by its shipped name or its path.

    Args:
        name_or_path: `doom_take_cover`, or a TOML file.
        overrides: values that replace those of a section, e.g. ``vae={"steps": 10}``.

    Raises:
        RecipeError: no such recipe, an unknown key or a value that cannot work.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        name = str(name_or_path).replace("-", "_")
        path = Path(str(resources.files("magi_world.training") / "recipes" / f"{name}.toml"))
    if not path.is_file():
        raise RecipeError(f"no recipe {str(name_or_path)!r}; shipped are {', '.join(available())}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: {error}") from None
    known = {"card", "config", *_SETTINGS}
    if set(data) != known:
        raise RecipeError(f"{path} has the sections {sorted(data)}, expected {sorted(known)}")
    flat = sorted(key for key, value in data.items() if not isinstance(value, dict))
    if flat:
        raise RecipeError(f"{path}: {', '.join(flat)} must be a section of keys")
    foreign = sorted(set(overrides) - set(_SETTINGS))
    if foreign:
        raise RecipeError(f"overrides of {foreign}; {sorted(_SETTINGS)} can be overridden")
    sections = {
        key: _settings(cls, {**data[key], **overrides.get(key, {})}, f"{path} [{key}]")
        for key, cls in _SETTINGS.items()
    }
    try:
        config = WorldConfig.from_dict(data["config"])
    except ConfigError as error:
        raise RecipeError(f"{path} [config]: {error}") from None
    try:
        check_card({**data["card"], "fps": config.fps, "config": data["config"]}, f"{path} [card]")
    except CheckpointError as error:
        raise RecipeError(str(error)) from None
    return Recipe(path=path, card=data["card"], config=config, **sections)


_SETTINGS: dict[str, type[StageSettings]] = {
    "vae": VAESettings, "dit": DiTSettings, "outcome": OutcomeSettings,
}  # fmt: skip
_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number"}
_LOWEST = {
    "steps": 1, "batch_size": 1, "log_every": 1, "sample_every": 1, "sequence": 2,
    "paraphrases": 1, "chunks": 1, "copies": 1,
}  # fmt: skip
_POSITIVE = ("learning_rate", "grad_clip")
_SHARES = ("cooldown", "caption_dropout", "history_noise", "own_history", "ema_decay")


def _settings(cls: type[StageSettings], values: dict[str, Any], source: str) -> Any:
    """Build the settings of a stage; refuse what no stage could run with."""
    kinds = {f.name: f.type for f in fields(cls)}
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise RecipeError(f"{source}: unknown {unknown}; known are {sorted(kinds)}")
    for name, value in values.items():
        allowed = (int, float) if kinds[name] is float else (kinds[name],)
        if type(value) not in allowed:
            raise RecipeError(f"{source}: {name} {value!r} is not {_KINDS[kinds[name]]}")
        lowest = _LOWEST.get(name, 0)
        if not lowest <= value < math.inf or (name in _POSITIVE and value == 0):
            raise RecipeError(f"{source}: {name} {value} is below what can work")
        if name in _SHARES and (value > 1 or (name == "ema_decay" and value == 1)):
            raise RecipeError(f"{source}: {name} {value} is a share, at most 1 (ema_decay below)")
    try:
        return cls(**values)
    except TypeError as error:  # a value without a default is missing
        raise RecipeError(f"{source}: {error}") from None
