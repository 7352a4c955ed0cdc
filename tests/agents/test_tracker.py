"""The players that data of Pong is collected with."""

import numpy as np
import numpy.typing as npt
import pytest

from magi_world.agents.tracker import DOWN, STAY, UP, Together, Tracker
from magi_world.envs.pong import CARD
from magi_world.errors import AgentError

OBJECTS = CARD["objects"]


def chunk(
    ball: tuple[float, float] | None, paddle: float, *, fall: int = 0, drift: int = 0
) -> npt.NDArray[np.uint8]:
    """Frames `[1, 4, 64, 64, 3]` of a ball (row, column) and the right paddle, as they end.

    `fall` and `drift` are the rows that ball and paddle move in a frame.
    """
    frames = np.full((1, 4, 64, 64, 3), OBJECTS["background"], np.uint8)
    for frame in range(4):
        back = 3 - frame
        top = int(paddle) - drift * back
        frames[0, frame, top - 3 : top + 3, 56:58] = OBJECTS["first_0"]["colour"]
        if ball is not None:
            row, column = int(ball[0]) - fall * back, int(ball[1])
            frames[0, frame, row : row + 2, column] = OBJECTS["ball"]["colour"]
    return frames


def tracker(**keywords: float) -> Tracker:
    player = Tracker("first_0", OBJECTS, **{"slip": 0.0, "reach": 3.0, "aim": 0.0} | keywords)
    player.reset(1, seed=3)
    return player


@pytest.mark.parametrize(
    ("ball", "paddle", "action"), [((10, 30), 40, UP), ((50, 30), 20, DOWN), ((29, 30), 30, STAY)]
)
def test_goes_where_the_ball_is(ball: tuple[int, int], paddle: int, action: int) -> None:
    assert tracker().act(chunk(ball, paddle)).tolist() == [action]


def test_aims_beside_the_ball() -> None:
    assert tracker(aim=6.0).act(chunk((29, 30), 30)).tolist() == [DOWN]


def test_reckons_with_a_ball_that_falls() -> None:
    assert tracker().act(chunk((29, 30), 30, fall=2)).tolist() == [DOWN]


def test_reckons_with_a_paddle_that_moves_on() -> None:
    """A paddle on its way is let go before it is there."""
    assert tracker().act(chunk((35, 30), 30)).tolist() == [DOWN]
    assert tracker().act(chunk((35, 30), 30, drift=2)).tolist() == [STAY]


def test_without_a_ball_or_when_it_slips_it_plays_at_random() -> None:
    still = tracker()
    assert len({int(still.act(chunk(None, 30))[0]) for _ in range(30)}) > 1
    slips = tracker(slip=1.0)
    assert len({int(slips.act(chunk((10, 30), 40))[0]) for _ in range(30)}) > 1


def test_share_of_slips_is_checked() -> None:
    with pytest.raises(AgentError, match=r"between 0 and 1, got 1\.5"):
        tracker(slip=1.5)


def test_players_together_name_the_prompt_of_the_chunk() -> None:
    both = Together([tracker(), tracker()], num_actions=3)
    both.reset(1, seed=3)
    alone = tracker().act(chunk((10, 30), 40))[0]
    assert both.act(chunk((10, 30), 40)).tolist() == [alone + 3 * alone]
