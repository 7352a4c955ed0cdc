"""Checks of what callers hand to a rollout, before anything moves."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magi_world.errors import ConfigError, PromptError, ResetOptionError


def is_index(value: object, size: int) -> bool:
    """Whether a value is a whole number of 0…size - 1; booleans are none."""
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return whole and 0 <= value < size  # type: ignore[operator]


def check_count(name: str, value: object) -> int:
    """Return a whole number from 1 on, such as a number of slots.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"{name} {value!r}: a whole number, 1 or more, is needed")
    return int(value)


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
    if not size:
        raise ResetOptionError(f"clip {clip!r}: the world has no clips")
    if len(given) != count or not all(is_index(index, size) for index in given):
        raise ResetOptionError(
            f"clip {clip!r}: one index of 0…{size - 1} is needed, or one for each of {count}"
        )
    return [int(index) for index in given]


def check_prompts(
    prompts: Any, count: int, check: Callable[[object], None], *, given: bool = False
) -> None:
    """Check that there is a list of `count` prompts, and `check` each.

    Those of `given` chunks may be None, for "no prompt". Raises `PromptError`.
    """
    several = isinstance(prompts, (Sequence, np.ndarray)) and not isinstance(prompts, str)
    if not several or len(prompts) != count:
        needed = f"{count} prompts are needed" if given else f"step needs a list of {count} prompts"
        text = "the text " if isinstance(prompts, str) else ""
        raise PromptError(f"{needed}, got {len(prompts) if several else text + repr(prompts)}")
    for prompt in prompts:
        if not (given and prompt is None):
            check(prompt)


def check_seeds(seeds: Iterable[int], count: int) -> list[int]:
    """One seed of 0…2**64 - 1 for each of `count` slots; raises `ConfigError` for anything else."""
    if not isinstance(seeds, Iterable) or isinstance(seeds, str):
        raise ConfigError(f"seeds {seeds!r}: a list of {count} is needed, one a slot")
    values = list(seeds.tolist() if isinstance(seeds, (np.ndarray, Tensor)) else seeds)
    if len(values) != count:
        raise ConfigError(f"{len(values)} seeds for {count} slots: one a slot is needed")
    for seed in values:
        if not is_index(seed, 2**64):
            raise ConfigError(f"seed {seed!r}: allowed are 0 to 2**64 - 1")
    return [int(seed) for seed in values]


def as_latents(latents: object, error: type[ValueError]) -> Tensor:
    """Latents as a tensor; environments hand them out as arrays. Raises `error` for no numbers."""
    try:
        return torch.as_tensor(latents)
    except (TypeError, ValueError, RuntimeError) as wrong:
        raise error(f"latents are no array of numbers: {wrong}") from None
