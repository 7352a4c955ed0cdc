"""What `--set` says: settings of a dataclass, or of the stages of a recipe."""

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from magi_world.errors import ConfigError
from magi_world.fitting import Unfit, fitting


def stage_settings(words: list[str], stages: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read `stage.name=value` words; values are JSON, or else text.

    Raises:
        ConfigError: a word of another form, or an unknown stage.
    """
    values: dict[str, dict[str, Any]] = {}
    for word in words:
        path, equals, text = word.partition("=")
        stage, dot, name = path.partition(".")
        if not (equals and dot and name) or stage not in stages:
            raise ConfigError(
                f"--set {word!r} is not SECTION.NAME=VALUE with a section of {', '.join(stages)}"
            )
        values.setdefault(stage, {})[name] = _value(text)
    return values


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def parse_settings(words: list[str], args: type) -> dict[str, Any]:
    """Read `name=value` words for a dataclass of settings; values are JSON, or else text.

    Raises:
        ConfigError: a word without "=", an unknown name, or a value of another kind than the
            setting has.
    """
    kinds = {field.name: field.type for field in fields(args)}
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or name not in kinds:
            raise ConfigError(f"--set {word!r} is not NAME=VALUE with one of {', '.join(kinds)}")
        try:
            values[name] = fitting(kinds[name], _value(text))
        except Unfit as error:
            raise ConfigError(f"--set {word!r}: {name} {error}") from None
    return values
