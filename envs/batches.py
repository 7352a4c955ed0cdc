"""Actions, seeds, reset options and infos of many slots at once, as vector environments take them.

Nothing here knows where the slots live: one batch of this process and batches in other processes
read their arguments and lay out their infos alike.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode

from magi_world.envs.arguments import check_reset_options, checked_seed
from magi_world.envs.spaces import as_index, as_prompt
from magi_world.errors import ActionError, ConfigError, PromptError, ResetOptionError

Mask = npt.NDArray[np.bool_]
Infos = dict[str, Any]

RESET_MASK = "reset_mask"
"""The reset option that names the slots to reset: bool `[num_envs]`."""


def as_autoreset_mode(value: object) -> AutoresetMode:
    """Return an `AutoresetMode`; text is the name or the value of one.

    Raises:
        ConfigError: there is no such mode.
    """
    if isinstance(value, AutoresetMode):
        return value
    for mode in AutoresetMode:
        if value in (mode.name, mode.value):
            return mode
    names = ", ".join(repr(mode.name) for mode in AutoresetMode)
    raise ConfigError(f"autoreset_mode {value!r}: allowed are {names}")


def slot_seeds(seed: Any, num_envs: int) -> list[int | None]:
    """One seed a slot: `seed + i` for a whole number, the entries of a list as they are.

    Raises:
        ConfigError: a list of another length, or a seed outside 0 to 2^63 - 1.
        gymnasium.error.Error: a seed that Gymnasium refuses too: negative, or no whole number.
    """
    if seed is None:
        return [None] * num_envs
    several = isinstance(seed, Sequence) or (isinstance(seed, np.ndarray) and seed.ndim > 0)
    if several and not isinstance(seed, str):
        seeds = [None if value is None else checked_seed(value) for value in seed]
        if len(seeds) != num_envs:
            raise ConfigError(f"{len(seeds)} seeds for {num_envs} slots: one a slot is needed")
        return seeds
    first = checked_seed(seed)
    checked_seed(first + num_envs - 1)
    return [first + slot for slot in range(num_envs)]


def split_options(options: object, num_envs: int) -> tuple[list[int], dict[str, Any]]:
    """Return the slots that a reset is for and how they begin, as keywords of `Rollout.reset`.

    Raises:
        ResetOptionError: a mask that is no bool array `[num_envs]` with a True in it, or what
            `check_reset_options` refuses.
    """
    if not isinstance(options, Mapping) or RESET_MASK not in options:
        return list(range(num_envs)), check_reset_options(options)
    mask = options[RESET_MASK]
    shape = (num_envs,)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != shape:
        raise ResetOptionError(f"{RESET_MASK} {mask!r}: a bool array of shape {shape} is needed")
    if not mask.any():
        raise ResetOptionError(f"{RESET_MASK} {mask!r}: it names no slot")
    rest = {key: value for key, value in options.items() if key != RESET_MASK}
    return [int(slot) for slot in np.flatnonzero(mask)], check_reset_options(rest)


def batch_prompts(
    actions: Any,
    form: str,
    prompts: Sequence[str],
    max_length: int,
    *,
    num_envs: int,
    ignored: Collection[int] = (),
    check: Callable[[str], object] = lambda prompt: None,
) -> list[str]:
    """The prompt of every slot.

    Args:
        actions: one a slot: texts, or indices as a list, an array or a torch tensor `[num_envs]`.
        form: "text" or "discrete".
        prompts: the card's prompts.
        max_length: most characters of a text.
        num_envs: slots.
        ignored: slots whose action is not looked at; they get the no-op.
        check: refuses texts that the world cannot use with a `PromptError`.

    Raises:
        PromptError, ActionError: not one action a slot, or a wrong one; the message names its slot.
    """
    error = PromptError if form == "text" else ActionError
    rows = actions.tolist() if hasattr(actions, "tolist") else actions
    if isinstance(rows, str) or not isinstance(rows, Sequence) or len(rows) != num_envs:
        raise error(f"actions {actions!r}: a list of {num_envs} is needed, one a slot")
    found = []
    for slot, action in enumerate(rows):
        if slot in ignored:
            found.append(prompts[0])
            continue
        try:
            if form == "text":
                found.append(as_prompt(action, max_length))
                check(found[-1])
            else:
                found.append(prompts[as_index(action, prompts)])
        except ValueError as wrong:
            raise error(f"slot {slot}: {wrong}") from None
    return found


def fill_infos(
    infos: Infos, slots: Sequence[int], columns: Mapping[str, Any], num_envs: int
) -> None:
    """Put values of some slots into infos, laid out as Gymnasium's own vector environments do.

    Every key `k` holds one row a slot (zeros, or None for texts, where nothing was put), and the
    mask `_k` says which rows hold something.

    Args:
        infos: changed in place.
        slots: the slots that the values belong to.
        columns: for each key one value per slot named; a mapping stands for infos inside infos.
        num_envs: slots of the environment.
    """
    whole = list(slots) == list(range(num_envs))
    rows = slice(None) if whole else list(slots)  # which costs less than a list
    for key, values in columns.items():
        if isinstance(values, Mapping):
            fill_infos(infos.setdefault(key, {}), slots, values, num_envs)
        else:
            column = values if isinstance(values, np.ndarray) else np.array(values)
            if column.dtype.kind in "US":
                column = column.astype(object)
            if key not in infos:
                infos[key] = (
                    np.full(num_envs, None, dtype=object)
                    if column.dtype == object
                    else np.zeros((num_envs, *column.shape[1:]), column.dtype)
                )
            infos[key][rows] = column
        infos.setdefault(f"_{key}", np.zeros(num_envs, np.bool_))[rows] = True


def object_column(values: Sequence[Any]) -> npt.NDArray[Any]:
    """An object array `[n]` of anything, also of arrays of one shape."""
    column = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        column[index] = value
    return column


def merge_infos(
    infos: Infos, part: Infos, slots: Sequence[int], num_envs: int, only: Mask | None = None
) -> None:
    """Put the infos of a smaller vector environment into those of a larger one.

    Args:
        infos: changed in place.
        part: infos with one row for each of the slots.
        slots: where these rows belong.
        num_envs: slots of the larger environment.
        only: rows to take, bool `[len(slots)]`; None takes all that the masks name.
    """
    for key, column in part.items():
        mask = part.get(f"_{key}")
        if mask is None:  # a mask itself
            continue
        rows = np.flatnonzero(mask if only is None else mask & only)
        chosen = [slots[int(row)] for row in rows]
        if isinstance(column, Mapping):
            merge_infos(infos.setdefault(key, {}), dict(column), slots, num_envs, only)
            infos.setdefault(f"_{key}", np.zeros(num_envs, np.bool_))[chosen] = True
        elif chosen:
            fill_infos(infos, chosen, {key: column[rows]}, num_envs)
