"""Saved states on disk: a nested dictionary of tensors and plain values in one safetensors file.

What a rollout or an environment hands out as its state is written as it is, without a copy of the
world's weights. Tensors are stored under their path of keys, joined by dots; everything else is
JSON in the file's header. The header also names the format and its version, so that a file of
another kind or another time is refused by name instead of failing somewhere inside.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from magi_world.checkpoints.tensors import read_tensors_and_metadata, write_tensors
from magi_world.errors import CheckpointError

FORMAT = "magi_world.state"
VERSION = 1
"""Counts up whenever states of before could no longer be restored."""


def save_state(state: Mapping[str, Any], path: Path | str) -> None:
    """Write a state under a temporary name, then rename it.

    Args:
        state: nested dictionaries with texts as keys, whose leaves are tensors or what JSON knows.
        path: the file, such as `here.safetensors`.

    Raises:
        CheckpointError: the dictionary holds something else, or the path is a folder.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"this state cannot be written: {type(state).__name__} is no state")
    if Path(path).is_dir():
        raise CheckpointError(f"this state cannot be written: {path} is a folder")
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, leaf in _leaves(state, ""):
        if isinstance(leaf, Tensor):
            tensors[name] = leaf.clone()  # safetensors refuses tensors that share memory
        else:
            values[name] = leaf
    try:
        text = json.dumps(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"this state cannot be written: {error}") from None
    header = {"format": FORMAT, "version": str(VERSION), "values": text}
    write_tensors(tensors, Path(path), header)


def load_state(path: Path | str) -> dict[str, Any]:
    """Read what :func:`save_state` wrote.

    Raises:
        CheckpointError: no such file, a damaged one, one that holds no state, or a state of
            another version of the format.
    """
    tensors, header = read_tensors_and_metadata(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path} holds no saved state, but {header.get('part', 'tensors')}")
    if header.get("version") != str(VERSION):
        raise CheckpointError(
            f"{path} was saved in version {header.get('version')} of the format of states, this "
            f"package reads version {VERSION}: make the state anew"
        )
    state: dict[str, Any] = {}
    try:
        values = json.loads(header["values"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: its header lacks the values: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is damaged: the values in its header have no names")
    for name, leaf in {**values, **tensors}.items():
        *folders, last = name.split(".")
        place = state
        for folder in folders:
            place = place.setdefault(folder, {})
            if not isinstance(place, dict):
                raise CheckpointError(f"{path} is damaged: {name!r} lies inside another value")
        place[last] = leaf
    return state


def _leaves(state: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in state.items():
        if not isinstance(key, str) or "." in key:
            raise CheckpointError(f"this state cannot be written: {key!r} is no key without a dot")
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
