"""What the states of environments share: the random generator of Gymnasium, and what is refused."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from magi_world.envs.shown import ShownChunks
from magi_world.errors import CheckpointError
from magi_world.sampling.rollout import Rollout
from magi_world.sampling.saved_state import check_fits, check_like

Array = npt.NDArray[Any]

SINGLE, VECTOR = "single", "vector"
"""Kinds of environments that a state can be of."""
COUNTS = ("chunk", "length")
"""what counts chunks in them"""


class HasRandom(Protocol):
    """An environment of Gymnasium, as far as its generator goes."""

    np_random: np.random.Generator


def random_state(env: HasRandom) -> dict[str, Any]:
    """State of an environment's own generator as plain values."""
    return dict(env.np_random.bit_generator.state)


def set_random_state(env: HasRandom, state: Mapping[str, Any]) -> None:
    """Give an environment a generator that goes on from the state."""
    generator = np.random.Generator(np.random.PCG64())
    generator.bit_generator.state = state
    env.np_random = generator


@contextmanager
def unless_refused(env: HasRandom) -> Iterator[None]:
    """Draw from an environment's own generator for something that may yet be refused."""
    before = random_state(env)
    try:
        yield
    except BaseException:
        env.np_random.bit_generator.state = before
        raise


def check_state(
    state: Mapping[str, Any],
    kind: str,
    rollout: Rollout,
    shown: ShownChunks,
    others: Mapping[str, type | tuple[type, ...] | Array],
) -> None:
    """Check that a state is of this kind of environment, whole and fits, before anything changes.

    Args:
        state: what `get_state` of an environment gave, perhaps through a file.
        kind: `SINGLE` or `VECTOR`.
        rollout, shown: of the environment that is to go on from it.
        others: what a state of this kind holds beside them: the type of a plain value, or an array
            whose shape and dtype a tensor must have.

    Raises:
        CheckpointError: it does not; the message says why.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{type(state).__name__} is no state: get_state() gives one")
    found = state.get("env")
    if not isinstance(found, str) or found != kind:
        what = f"of a {found} environment" if isinstance(found, str) else "that no environment gave"
        raise CheckpointError(f"a state {what} in a {kind} environment")
    missing = [name for name in ("rollout", "np_random", "shown", *others) if name not in state]
    if missing:
        raise CheckpointError(f"this is no whole state of an environment: it lacks {missing}")
    check_fits(rollout, state["rollout"])
    shown.check(state["shown"])
    for name, like in others.items():
        value = state[name]
        if isinstance(like, np.ndarray):
            check_like(name, value, torch.from_numpy(like))
        # a truth is a number for Python, but not here
        elif not isinstance(value, like) or (like is int and isinstance(value, bool)):
            raise CheckpointError(f"a damaged state: {name} {value!r}")
        if name in COUNTS and not 0 <= int(value.min() if isinstance(like, np.ndarray) else value):
            raise CheckpointError(f"a damaged state: {name} {value!r}: below 0")
    try:
        np.random.PCG64().state = state["np_random"]
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise CheckpointError(f"a damaged state: np_random: {error}") from None
