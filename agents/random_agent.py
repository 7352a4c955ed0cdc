"""Agents that look at nothing: the baselines beside every score, and what data is collected with.

All of them read observations of either form (they only count the rows), and all play `n` rows at
once: `reset(n, seed)` starts them, `act(observations)` gives one prompt index a row, int64 `[n]`.
Row i's generator gets `seed + i`, so that every row can be repeated alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.errors import AgentError

Actions = npt.NDArray[np.int64]


class NoOp:
    """Always prompt 0, which is the no-op in every world."""

    observations = "latent"

    def reset(self, n: int, seed: int | None = None) -> None:
        """Start `n` rows; there is nothing to seed."""

    def act(self, observations: Any) -> Actions:
        """Return zeros, one a row."""
        return np.zeros(len(observations), np.int64)


class Sticky:
    """With probability `p` the row's last action again, else one of the `num_actions` drawn anew.

    The first action of an episode is always drawn. `p = 0` draws anew for every chunk. `weights`,
    one an action, say how often each is drawn; None is equally often.
    """

    observations = "latent"

    def __init__(
        self, num_actions: int, p: float = 0.5, weights: Sequence[float] | None = None
    ) -> None:
        if num_actions < 1:
            raise AgentError(f"num_actions is at least 1, got {num_actions}")
        if not 0.0 <= p <= 1.0:
            raise AgentError(f"the probability of repeating is between 0 and 1, got {p}")
        if weights is not None and (
            len(weights) != num_actions or min(weights) < 0 or not sum(weights) > 0
        ):
            raise AgentError(f"weights {list(weights)}: {num_actions} numbers, none below 0")
        self.shares = None if weights is None else np.array(weights, float) / sum(weights)
        self.num_actions = num_actions
        self.p = p
        self._generators: list[np.random.Generator] = []
        self._last: Actions | None = None

    def reset(self, n: int, seed: int | None = None) -> None:
        """Start `n` rows; row i draws from a generator of its own, seeded `seed + i`."""
        seeds = [None] * n if seed is None else range(seed, seed + n)
        self._generators = [np.random.default_rng(row_seed) for row_seed in seeds]
        self._last = None

    def act(self, observations: Any) -> Actions:
        """Return the next action of each row, int64 `[n]`."""
        rows = _checked_rows(observations, len(self._generators))
        last = self._last
        actions = np.empty(rows, np.int64)
        for row, generator in enumerate(self._generators):
            # Both numbers are drawn in any case, so that a row's draws do not depend on its past.
            repeat = generator.random() < self.p
            if self.shares is None:
                fresh = int(generator.integers(self.num_actions))
            else:
                fresh = int(generator.choice(self.num_actions, p=self.shares))
            actions[row] = last[row] if repeat and last is not None else fresh
        self._last = actions
        return actions.copy()


class Random(Sticky):
    """One of the `num_actions` actions, uniformly, anew for every chunk."""

    def __init__(self, num_actions: int) -> None:
        super().__init__(num_actions, p=0.0)


class Sweep:
    """Walks left and right by the clock: `period` chunks each way, half a period at first.

    Chunk k after the reset chunk (k = 0 is the first one acted on) goes left if
    `(k + period // 2) // period` is even, else right; starting with half a period keeps the walk
    centred. `left` and `right` are the prompt indices of the two directions.
    """

    observations = "latent"

    def __init__(self, period: int, left: int = 1, right: int = 2) -> None:
        if period < 1:
            raise AgentError(f"the period of a sweep is at least 1 chunk, got {period}")
        self.period = period
        self.left = left
        self.right = right
        self._rows = 0
        self._chunk = 0

    def reset(self, n: int, seed: int | None = None) -> None:
        """Start `n` rows at chunk 0; there is nothing to seed."""
        self._rows = n
        self._chunk = 0

    def act(self, observations: Any) -> Actions:
        """Return the same direction for every row, int64 `[n]`."""
        rows = _checked_rows(observations, self._rows)
        turns = (self._chunk + self.period // 2) // self.period
        self._chunk += 1
        return np.full(rows, self.left if turns % 2 == 0 else self.right, np.int64)


def _checked_rows(observations: Any, rows: int) -> int:
    """Return `rows`, the number given to `reset`, if the observations have as many."""
    if len(observations) != rows:
        raise AgentError(
            f"{len(observations)} observations, but the agent was reset for {rows} rows"
        )
    return rows
