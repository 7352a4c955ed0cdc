"""What the sections of a configuration have in common: checks, and plain data in and out."""

import math
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Self

from magi_world.errors import ConfigError


def require(condition: bool, message: str) -> None:
    """Raise :class:`ConfigError` with the message unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def require_counts(section: object, *names: str) -> None:
    """Refuse fields that are not whole numbers from 1 on."""
    for name in names:
        value = getattr(section, name)
        require(
            isinstance(value, int) and not isinstance(value, bool) and value >= 1,
            f"{name} {value!r}: a whole number, 1 or more, is needed",
        )


def is_number(value: object) -> bool:
    """Say whether a value is a finite number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def require_flags(section: object, *names: str) -> None:
    """Refuse fields that are neither true nor false."""
    for name in names:
        value = getattr(section, name)
        require(isinstance(value, bool), f"{name} {value!r}: true or false is needed")


def require_texts(section: object, *names: str) -> None:
    """Refuse fields that are no lists of texts; one text would be read letter by letter."""
    for name in names:
        value = getattr(section, name)
        require(
            isinstance(value, tuple | list) and all(isinstance(text, str) for text in value),
            f"{name} {value!r}: a list of texts is needed",
        )


class Section:
    """Reading and writing of one section as plain data."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the section from plain data; absent keys take their defaults.

        Raises:
            ConfigError: an unknown key, or a value that cannot work.
        """
        require(isinstance(values, Mapping), f"{cls.__name__}: {values!r} is no table of keys")
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        unknown = sorted(set(values) - known)
        require(not unknown, f"{cls.__name__}: unknown keys {unknown}; known are {sorted(known)}")
        converted = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        try:
            return cls(**converted)
        except TypeError as error:
            raise ConfigError(f"{cls.__name__}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the section as plain data that JSON can hold."""
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
