"""Which chunks count: a wall stops the picture, and a player can go where he has been."""

import numpy as np
import pytest

from magi_world.evaluation.inverse_model import LONG
from magi_world.evaluation.mobility import (
    Travel,
    can_move,
    has_room,
    learn_travel,
    shifts,
    spread,
)
from magi_world.evaluation.motion import Moments, join_moments, moments_of
from tests.evaluation.fake_game import WALL

FORWARDS = (0, -1, 1)
WIDTH = 40


def corridor(actions: np.ndarray[tuple[int], np.dtype[np.int64]], place: int) -> tuple[
    Moments, list[int]
]:  # fmt: skip
    """Moments of a walk between two walls, and the place after each chunk."""
    smooth = np.stack([np.convolve(row, np.ones(16) / 16, "same") for row in WALL[:, :, 0]])
    frames = np.empty((len(actions), 4, 64, 64, 3), np.uint8)
    places = []
    for chunk, action in enumerate(actions):
        for frame in range(4):
            place = min(max(place + FORWARDS[action], 0), WIDTH)
            frames[chunk, frame] = smooth[:, place : place + 64, None].astype(np.uint8)
        places.append(place)
    return moments_of(frames, actions), places[2:]


def runs(*pairs: tuple[int, int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Actions from (action, chunks) pairs."""
    return np.repeat([action for action, _ in pairs], [count for _, count in pairs])


@pytest.fixture(scope="module")
def travel() -> Travel:
    parts = [
        corridor(runs((0, 8), (2, 8)), 0)[0],
        corridor(runs((0, 8), (1, 8)), WIDTH)[0],
    ]
    return learn_travel(join_moments(parts), 3)


def test_shifts_and_what_is_usual(travel: Travel) -> None:
    assert travel.shift.shape == (3, 2)
    assert (travel.shift[0] == 0).all()
    # four pixels a chunk are two at half the resolution; the window goes where the player goes
    assert travel.shift[1:, 0] == pytest.approx([2.0, -2.0], abs=0.5)
    assert travel.usual == pytest.approx(2.0, abs=0.5)


def test_who_pushes_against_a_wall_is_stuck(travel: Travel) -> None:
    actions = runs((2, 6), (1, 16), (0, 3))
    moments, places = corridor(actions, 8)
    allowed = can_move(moments, travel)
    at_wall = [
        place == 0 and action == 1 for place, action in zip(places, actions[2:], strict=True)
    ]
    reached = at_wall.index(True)  # the chunk that comes to the wall still moves
    assert allowed[: reached + 1].all()
    assert not allowed[reached + 1 : len(actions) - 2 - 3].any()
    assert allowed[-3:].all()  # standing still is what the no-op does


def test_where_no_action_moves_the_picture_nothing_is_left_out() -> None:
    still = np.zeros((12, 4, 32, 32, 3), np.uint8)
    moments = moments_of(still, runs((0, 6), (1, 6)))
    travel = learn_travel(moments, 3)
    assert travel.usual == 0
    assert can_move(moments, travel).all()
    assert has_room(moments, 3, np.array([1, 1, 2]), travel).all()
    assert (shifts(moments) == 0).all()


def test_a_player_can_go_where_he_has_been() -> None:
    moments, _ = corridor(runs((2, 7), (1, 2)), 0)
    step = 0.9 * abs(shifts(moments)[:5, 0]).mean()
    travel = Travel(shift=np.array([[0.0, 0.0], [step, 0.0], [-step, 0.0]]))
    # at the end of the walk he has been two chunks further to the right, and three to the left
    right = has_room(moments, len(moments), runs((2, 4)), travel)
    assert right.tolist() == [True, False, False, False]
    left = has_room(moments, len(moments), runs((1, 4)), travel)
    assert left.tolist() == [True, True, False, False]
    assert has_room(moments, len(moments), runs((0, 4)), travel).all()
    back = has_room(moments, len(moments), runs((2, 3), (1, 3)), travel)
    assert not back[2] and back[3:].all()  # who turns round at a wall can move


def test_groups_are_spread_over_the_actions() -> None:
    actions = np.repeat([0, 1, 2], [10, 100, 200])
    allowed = np.ones(310, np.bool_)
    allowed[:4] = False
    chosen = spread(actions, allowed, 100, seed=0)
    assert np.bincount(actions[chosen]).tolist() == [6, 47, 47]
    assert not chosen[:4].any()
    assert spread(actions, allowed, 1000, seed=0).sum() == allowed.sum()
    assert (spread(actions, allowed, 100, seed=0) == chosen).all()
    assert spread(actions, np.zeros(310, np.bool_), 100, seed=0).sum() == 0


def test_moments_can_be_chosen() -> None:
    moments, _ = corridor(runs((1, LONG), (2, LONG)), 20)
    kept = moments[moments.actions == 2]
    assert len(kept) == LONG and (kept.actions == 2).all()
    assert kept.motion.shape == (LONG, moments.motion.shape[1])
