"""What environments are made and reset with, checked before anything is read or changed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding

from magi_world.errors import ConfigError, ResetOptionError
from magi_world.players import players_of

STARTS = ("clip", "image", "video", "prompt")
"""Reset options of which at most one may be given."""
RESET_OPTIONS = (*STARTS, "prompts")
MAX_SEED = 2**63 - 1


def check_horizon(horizon: Any, name: str = "horizon") -> None:
    """Refuse a limit, the keyword `name`, that is neither None nor a number of chunks from 1 on.

    Raises:
        ConfigError: it is such a value.
    """
    if horizon is not None and (not _is_integer(horizon) or horizon < 1):
        raise ConfigError(f"{name} {horizon!r}: a whole number of chunks, 1 or more, or None")


def checked_seed(seed: Any, largest: int = MAX_SEED) -> int:
    """Return a seed as Python's own number.

    Raises:
        ConfigError: it is larger than `largest`.
        gymnasium.error.Error: Gymnasium refuses it too: negative, or no whole number.
    """
    number = int(seed) if isinstance(seed, np.integer) else seed
    seeding.np_random(number)  # refuses what Gymnasium refuses everywhere
    if isinstance(number, bool) or number > largest:
        bits = (largest + 1).bit_length() - 1
        raise ConfigError(f"seed {number}: allowed are 0 to 2**{bits} - 1")
    return int(number)


def check_flag(name: str, value: object) -> bool:
    """Return the truth that the keyword `name` was given; the text "False" would count as true.

    Raises:
        ConfigError: it is none.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise ConfigError(f"{name} {value!r}: True or False is needed")
    return bool(value)


def check_agents(card: Mapping[str, Any], for_players: bool) -> None:
    """Refuse a world with players where a single agent is expected.

    Raises:
        ConfigError: it is one.
    """
    if players_of(card) and not for_players:
        raise ConfigError(
            f"the world {card['name']!r} has the players {players_of(card)}: open it with "
            f"magi_world.envs.parallel_env({card['name']!r})"
        )


def check_reset_options(options: object) -> dict[str, Any]:
    """Return the reset options as keywords of `Rollout.reset`.

    Raises:
        ResetOptionError: no dictionary, an unknown key, a value of None, two options of `STARTS`,
            or `prompts` without the pictures that they describe.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ResetOptionError(
            f"options {options!r}: a dictionary is needed, with keys of {list(RESET_OPTIONS)}"
        )
    unknown = [key for key in options if key not in RESET_OPTIONS]
    if unknown:
        raise ResetOptionError(f"unknown reset options {unknown}: known are {list(RESET_OPTIONS)}")
    empty = [key for key, value in options.items() if value is None]
    if empty:
        raise ResetOptionError(f"reset options {empty} are None: leave out what is not meant")
    given = [key for key in STARTS if key in options]
    if len(given) > 1:
        raise ResetOptionError(f"reset options {given}: at most one of {list(STARTS)}")
    start = dict(options)
    if "clip" in start:
        if not _is_integer(start["clip"]):
            raise ResetOptionError(f"clip {start['clip']!r}: an index into the bank is needed")
        start["clip"] = int(start["clip"])
    if "prompts" in start:
        if given not in (["image"], ["video"]):
            raise ResetOptionError(
                f"reset options {list(options)}: 'prompts' goes beside 'image' or 'video'"
            )
        if isinstance(start["prompts"], str) or not isinstance(start["prompts"], Sequence):
            raise ResetOptionError(f"prompts {start['prompts']!r}: a list, one a chunk, is needed")
    return start


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
