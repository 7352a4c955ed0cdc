"""Checks of what callers hand to a rollout, before anything moves."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from magi_world.errors import ConfigError, ResetOptionError


def is_index(value: object, size: int) -> bool:
    """Whether a value is a whole number of 0…size - 1; booleans are none."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and 0 <= value < size  # type: ignore[operator]


def check_slots(
    slots: Sequence[int] | None, batch_size: int, *, repeated: bool = False
) -> list[int]:
    """The slots named, all of them for None.

    Raises `ConfigError` unless there are some, all known and, if not `repeated`, different.
    """
    if slots is None:
        return list(range(batch_size))
    named: Any = slots.tolist() if isinstance(slots, (np.ndarray, Tensor)) else slots
    several = isinstance(named, Iterable) and not isinstance(named, str)
    chosen = list(named) if several else []
    known = all(is_index(slot, batch_size) for slot in chosen)
    if not chosen or not known or not (repeated or len(set(chosen)) == len(chosen)):
        different = "" if repeated else " different"
        raise ConfigError(
            f"slots {chosen if several else named!r}: one or more{different} slots of "
            f"0…{batch_size - 1} are needed"
        )
    return [int(slot) for slot in chosen]


def chosen_clips(clip: int | Sequence[int] | None, count: int, size: int) -> list[int] | None:
    """One clip a slot, of a bank of `size` clips; raises `ResetOptionError` for anything else."""
    if clip is None:
        return None
    if isinstance(clip, (np.ndarray, Tensor)):
        clip = clip.tolist()
    several = isinstance(clip, Sequence) and not isinstance(clip, str)
    given: list[Any] = list(clip) if several else [clip] * count  # type: ignore[arg-type]
    if len(given) != count or not all(is_index(index, size) for index in given):
        raise ResetOptionError(
            f"clip {clip!r}: one index of 0…{size - 1} is needed, or one for each of {count}"
        )
    return [int(index) for index in given]
