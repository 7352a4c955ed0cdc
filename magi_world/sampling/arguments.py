"""Checks of what callers hand to a rollout, before anything moves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from magi_world.errors import ConfigError, ResetOptionError


def is_index(value: object, size: int) -> bool:
    """Whether a value is a whole number of 0…size - 1; booleans are none."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and 0 <= value < size  # type: ignore[operator]


def check_slots(slots: Sequence[int] | None, batch_size: int) -> list[int]:
    """The slots named, all of them for None.

    Raises `ConfigError` unless there are some, all different and known.
    """
    if slots is None:
        return list(range(batch_size))
    chosen = [int(slot) for slot in slots]
    wrong = [slot for slot in chosen if not 0 <= slot < batch_size]
    if wrong or not chosen or len(set(chosen)) != len(chosen):
        raise ConfigError(
            f"slots {chosen}: one or more different slots of 0…{batch_size - 1} are needed"
        )
    return chosen


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
