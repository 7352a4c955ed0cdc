"""What the states of environments share: the random generator of Gymnasium, and what is refused."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from magi_world.errors import CheckpointError

SINGLE, VECTOR = "single", "vector"
"""Kinds of environments that a state can be of."""


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


def check_state(state: Mapping[str, Any], kind: str, names: Sequence[str]) -> None:
    """Check that a state is of this kind of environment and whole, before anything changes.

    Raises:
        CheckpointError: it is not; the message says what it is instead.
    """
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{type(state).__name__} is no state: get_state() gives one")
    found = state.get("env")
    if found != kind:
        what = f"of a {found} environment" if found else "that no environment gave"
        raise CheckpointError(f"a state {what} in a {kind} environment")
    missing = [name for name in ("rollout", "np_random", *names) if name not in state]
    if missing:
        raise CheckpointError(f"this is no whole state of an environment: it lacks {missing}")
    try:
        np.random.PCG64().state = state["np_random"]
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"a damaged state: np_random: {error}") from None
