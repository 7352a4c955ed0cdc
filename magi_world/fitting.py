"""Values from files and command lines, as the annotation of a setting wants them."""

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin


class Unfit(ValueError):
    """A value that is not of the kind that its setting has."""


def fitting(kind: Any, value: Any) -> Any:
    """The value as its setting wants it: lists as tuples, whole numbers as floats.

    Args:
        kind: the setting's annotation: a plain type, a `Literal`, a tuple or dictionary of plain
            types, or a union of these.
        value: what JSON or TOML gave.

    Raises:
        Unfit: it is of another kind.
    """
    several = isinstance(kind, UnionType) or get_origin(kind) is Union
    for one in get_args(kind) if several else (kind,):
        try:
            return _fitting(one, value)
        except Unfit:
            continue
    name = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    raise Unfit(f"{value!r} is not of kind {name.removeprefix('typing.')}")


def _fitting(kind: Any, value: Any) -> Any:
    origin = get_origin(kind) or kind
    inner = get_args(kind)
    if origin is Literal:
        if value in inner:
            return value
    elif origin is tuple and isinstance(value, (list, tuple)):
        kinds = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(kinds) == len(value):
            return tuple(fitting(one, part) for one, part in zip(kinds, value, strict=True))
    elif origin is dict and type(value) is dict:
        of_values = inner[1] if inner else Any
        return {key: fitting(of_values, part) for key, part in value.items()}
    elif origin is float and type(value) is int:
        return float(value)
    elif origin is Any or type(value) is (type(None) if origin is None else origin):
        return value
    raise Unfit(str(value))
