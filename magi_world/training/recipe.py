"""Recipes: one TOML file a world with its card, its configuration and its three stages."""

import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from magi_world.config import WorldConfig
from magi_world.errors import ConfigError, RecipeError
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
    if not path.exists():
        raise RecipeError(f"no recipe {str(name_or_path)!r}; shipped are {', '.join(available())}")
    try:
        data = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: {error}") from None
    known = {"card", "config", "vae", "dit", "outcome"}
    if set(data) != known:
        raise RecipeError(f"{path} has the sections {sorted(data)}, expected {sorted(known)}")
    sections: dict[str, Any] = {}
    for key, cls in (("vae", VAESettings), ("dit", DiTSettings), ("outcome", OutcomeSettings)):
        values = {**data[key], **overrides.get(key, {})}
        allowed = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - allowed)
        if unknown:
            raise RecipeError(f"{path} [{key}]: unknown {unknown}; known are {sorted(allowed)}")
        sections[key] = cls(**values)
    try:
        config = WorldConfig.from_dict(data["config"])
    except ConfigError as error:
        raise RecipeError(f"{path} [config]: {error}") from None
    return Recipe(path=path, card=data["card"], config=config, **sections)
