"""In which chunks the player can move at all, read off the real pictures.

Whoever pushes against a wall shows the same pictures as one who stands still, so no judge can name
the action there, and such chunks say nothing about the prompt. Only real pictures decide which
chunks those are: a dream that ignores its prompt stands still, too, and must not excuse itself.

The shift of the whole picture from the end of one chunk to the end of the next tells how the player
moved. An action that hardly shifts the picture in the game (as the no-op, action 0, does not) is
never stuck; in a game whose picture stands still under every action nothing is left out.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from magi_world.evaluation.clips import Integers
from magi_world.evaluation.inverse_model import LONG
from magi_world.evaluation.metrics import Mask
from magi_world.evaluation.motion import GRIDS, Moments

STILL = 0.2
"""share of the usual shift below which a picture stands still"""
_WHOLE = 10
"""features at the end of a moment's motion: those of the whole picture from chunk to chunk"""


@dataclass(frozen=True, kw_only=True)
class Travel:
    """How far the game's actions shift the picture in one chunk, in pixels at half resolution."""

    shift: npt.NDArray[np.float64]
    """float64 `[num_actions, 2]`: across and down; 0 for an action that does not move the player"""

    @property
    def usual(self) -> float:
        """Length of the longest shift; 0 if no action moves the picture."""
        return float(np.linalg.norm(self.shift, axis=1).max(initial=0.0))


def shifts(moments: Moments) -> npt.NDArray[np.float64]:
    """Shift of the whole picture from the end of the chunk before to that of this: `[n, 2]`."""
    assert GRIDS[-1] == 1  # the last features are those of the whole picture
    whole = moments.motion[:, -_WHOLE:].astype(np.float64).reshape(-1, 5, 2)
    return whole[:, :2, 1]


def learn_travel(moments: Moments, num_actions: int) -> Travel:
    """Measure the usual shift of each action on real moments in which it has been held for long.

    It is the median of the half with the longer shifts, so that chunks at a wall do not count. An
    action moves the player if that is more than twice as long as the no-op's.
    """
    measured = shifts(moments)
    result = np.zeros((num_actions, 2))
    for action in range(num_actions):
        own = measured[(moments.actions == action) & (moments.held >= LONG)]
        if len(own):
            lengths = np.linalg.norm(own, axis=1)
            result[action] = np.median(own[lengths >= np.median(lengths)], axis=0)
    lengths = np.linalg.norm(result, axis=1)
    result[lengths <= 2 * lengths[0]] = 0
    result[0] = 0
    return Travel(shift=result)


def can_move(moments: Moments, travel: Travel) -> Mask:
    """Mark the chunks in which the player can move: bool `[n]` for n consecutive real moments.

    A chunk under an action that moves the player counts as stuck if the picture stands still in it:
    if the median of the shifts of the chunk before, itself and the one after is below `STILL` of
    the usual one. The median lets the moment pass in which a player turns round, and finds the wall
    also where a monster runs through the picture. Beside the positions that Take Cover itself
    tells, it finds nine of ten stuck chunks and leaves out 2 % of the others.
    """
    lengths = np.linalg.norm(shifts(moments), axis=1)
    around = np.pad(lengths, 1, mode="edge") if len(lengths) else np.zeros(2)
    smooth = np.median(np.stack([around[:-2], around[1:-1], around[2:]]), axis=0)
    moving = np.linalg.norm(travel.shift, axis=1)[moments.actions] > 0
    stuck: Mask = moving & (smooth < STILL * travel.usual)
    return ~stuck


def has_room(real: Moments, before: int, actions: Integers, travel: Travel) -> Mask:
    """Mark the chunks of a dream in which the player can move: bool `[horizon]`.

    The dream begins after the first `before` moments of the real clip and is driven by `actions`,
    int64 `[horizon]`, which may be others than the clip's. A player can go where he has been: as
    long as the usual shifts of the actions, and one chunk more for his impetus, add up to a place
    between the outermost ones that he reached in the clip, before or after, there is no wall. What
    lies further is left out, because nobody knows.
    """
    places = np.concatenate([np.zeros((1, 2)), np.cumsum(shifts(real), axis=0)])
    places -= places[before]
    step = travel.shift[actions]
    reached = np.cumsum(step, axis=0) + step
    free = (reached <= places.max(axis=0)) | (step <= 0)
    free &= (reached >= places.min(axis=0)) | (step >= 0)
    # across and down are judged apart; what an action does not mean to shift cannot stop it
    minor = np.abs(step) < np.abs(step).max(axis=1, keepdims=True) / 2
    result: Mask = (free | minor).all(axis=1)
    return result


def spread(actions: Integers, allowed: Mask, count: int, seed: int) -> Mask:
    """Choose up to `count` of the allowed chunks, as many of each action as there are: bool `[n]`.

    What a rare action cannot give, the others do.
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(actions), np.bool_)
    places = [np.flatnonzero(allowed & (actions == action)) for action in np.unique(actions)]
    places.sort(key=len)
    for index, own in enumerate(places):
        quota = (count - int(chosen.sum())) // (len(places) - index)
        chosen[rng.choice(own, size=min(quota, len(own)), replace=False)] = True
    return chosen
