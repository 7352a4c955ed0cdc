"""One file holds the settings with which the agents of a world are trained.

It has a section for each kind of training: `ppo` (in the dream), `ppo-real` (in the real game),
`fitted-q`, `fitted-q-held` (by the values of an agent of the former), `selfplay` (of all players)
and `linear` (all in the dream); what it does not name has the default of the training's `Args`.
"""

import tomllib
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

from magi_world.agents import fitted_q, linear_training, ppo
from magi_world.agents.fitted_q_files import KIND
from magi_world.errors import RecipeError
from magi_world.fitting import Unfit, fitting

SECTIONS: dict[str, type] = {
    "ppo": ppo.Args,
    "ppo-real": ppo.Args,
    KIND: fitted_q.Args,
    fitted_q.HELD: fitted_q.Args,
    "selfplay": ppo.Args,
    "linear": linear_training.Args,
}


def available() -> list[str]:
    """Names of the recipes that the package ships."""
    folder = resources.files("magi_world.agents") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def recipe_settings(name_or_path: str | Path, section: str) -> dict[str, Any]:
    """Settings of one kind of training.

    Args:
        name_or_path: a shipped recipe, by the name of its world (`doom-take-cover`), or a TOML
            file.
        section: one of `SECTIONS`; a recipe without it says nothing about that training.

    Raises:
        RecipeError: no such recipe, an unknown section or setting, or a value of another kind.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        name = str(name_or_path).replace("-", "_")
        path = Path(str(resources.files("magi_world.agents") / "recipes" / f"{name}.toml"))
    if not path.is_file():
        raise RecipeError(
            f"no recipe {str(name_or_path)!r} for agents; shipped are {', '.join(available())}"
        )
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from None
    unknown = sorted(set(data) - set(SECTIONS))
    if unknown:
        raise RecipeError(f"{path} has the sections {unknown}; known are {list(SECTIONS)}")
    for known, values in data.items():
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: {known} must be a section of settings")
        data[known] = {key: _fitting(known, key, v, path) for key, v in values.items()}
    settings: dict[str, Any] = data.get(section, {})
    return settings


def _fitting(section: str, name: str, value: Any, path: Path) -> Any:
    """The value as its setting wants it: lists as tuples, whole numbers as floats."""
    kinds = {field.name: field.type for field in fields(SECTIONS[section])}
    if name not in kinds:
        raise RecipeError(f"{path} [{section}]: unknown {name!r}; known are {sorted(kinds)}")
    try:
        return fitting(kinds[name], value)
    except Unfit as error:
        raise RecipeError(f"{path} [{section}]: {name} {error}") from None
