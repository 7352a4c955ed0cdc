"""Players of two-player Pong that data is collected with: they look at pixels, and err.

They exist to show a world every situation of the game, and are no opponents in any score.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.agents.random_agent import Sticky
from magi_world.errors import AgentError
from magi_world.evaluation.objects import Places, locate
from magi_world.players import join_actions

Actions = npt.NDArray[np.int64]

STAY, UP, DOWN = 0, 1, 2
_COAST = 2.5  # frames that a paddle still moves on after it is let go
_LEAD = 4.0  # frames until the ball is where the next chunk leaves it


class Tracker:
    """Moves its paddle to where the ball is about to be, and sometimes at random.

    A paddle answers late and moves by more than its own height in a chunk, so that who only looks
    where things are never comes to rest at the right height.

    Args:
        player: its name among `objects`.
        objects: colours of ball and paddles, see `magi_world.evaluation.objects`.
        slip: share of the chunks in which it plays at random instead.
        reach: how far from the ball's height, in rows, it lets its paddle be.
        aim: rows from the middle of the paddle to where it wants the ball, so that balls are hit at
            all angles.
    """

    observations = "frames"

    def __init__(
        self, player: str, objects: Mapping[str, Any], *, slip: float, reach: float, aim: float
    ) -> None:
        if not 0.0 <= slip <= 1.0:
            raise AgentError(f"the share of random chunks is between 0 and 1, got {slip}")
        self.player = player
        self.objects = {name: objects[name] for name in ("background", "ball", *_paddles(objects))}
        self.slip = slip
        self.reach = reach
        self.aim = aim
        self._idle = Sticky(3, p=0.6)
        self._generators: list[np.random.Generator] = []

    def reset(self, n: int, seed: int | None = None) -> None:
        """Start `n` rows; row i draws from a generator of its own, seeded `seed + i`."""
        self._idle.reset(n, seed)
        seeds = [None] * n if seed is None else range(seed, seed + n)
        self._generators = [np.random.default_rng(row_seed) for row_seed in seeds]

    def act(self, observations: Any) -> Actions:
        """Return an action of this player for frames uint8 `[n, F, H, W, 3]`, int64 `[n]`."""
        frames = np.asarray(observations)
        before, now = (locate(frames[:, frame], self.objects) for frame in (-2, -1))
        ball = _expected(before["ball"], now["ball"], _LEAD)
        paddle = _expected(before[self.player], now[self.player], _COAST)
        actions = self._idle.act(observations)
        for row, generator in enumerate(self._generators):
            if generator.random() < self.slip or np.isnan(ball[row]) or np.isnan(paddle[row]):
                continue
            off = ball[row] + self.aim - paddle[row]
            actions[row] = STAY if abs(off) <= self.reach else DOWN if off > 0 else UP
        return actions


class Together:
    """One policy a player, as one policy that gives the index of the chunk's prompt.

    Args:
        policies: one a player, in the order of the card's players.
        num_actions: actions of each player.
    """

    observations = "frames"

    def __init__(self, policies: Sequence[Any], num_actions: int) -> None:
        self.policies = list(policies)
        self.num_actions = num_actions

    def reset(self, n: int, seed: int | None = None) -> None:
        """Start `n` rows; every player's generators are seeded apart from the others'."""
        for number, policy in enumerate(self.policies):
            policy.reset(n, None if seed is None else seed + number * 10_000_000)

    def act(self, observations: Any) -> Actions:
        """Return the index of the prompt of each row's chunk, int64 `[n]`."""
        own = [policy.act(observations) for policy in self.policies]
        return join_actions(own, self.num_actions)


def _expected(before: Places, now: Places, frames: float) -> npt.NDArray[np.float64]:
    """Heights some frames later, `[n]`: on as between two frames; as now where it was not there."""
    moved = np.nan_to_num(now[:, 0] - before[:, 0])
    return np.asarray(now[:, 0] + frames * moved)


def _paddles(objects: Mapping[str, Any]) -> list[str]:
    return [name for name in objects if name not in ("background", "ball")]
