"""Any Gymnasium environment as a game of chunks."""

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from magi_world.envs import GymnasiumGame
from magi_world.errors import ActionError, ConfigError, DatasetError, NotReset


class Line(gymnasium.Env[Any, Any]):
    """A picture that counts steps; the episode ends after `length` of them."""

    action_space: spaces.Space[Any] = spaces.Discrete(3)
    observation_space: spaces.Space[Any] = spaces.Box(0, 255, (16, 32, 3), np.uint8)
    length = 10
    terminates = True

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.played: list[Any] = []
        self.closed = False

    def observe(self) -> Any:
        """Rows of the number of steps, the upper half black."""
        picture = np.full((16, 32, 3), self.count, np.uint8)
        picture[:8] = 0
        return picture

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count = 0 if seed is None else seed
        self.left = self.length
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.played.append(action)
        self.count += 1
        self.left -= 1
        over = self.left == 0
        return self.observe(), -0.5, over and self.terminates, over and not self.terminates, {}

    def render(self) -> Any:
        return self.observe() + np.uint8(100)

    def close(self) -> None:
        self.closed = True


class Game(GymnasiumGame):
    name = "line"
    actions: Mapping[str, Any] = {"rest": 2, "go": 0}
    size = (8, 8)
    kind: type[Line] = Line
    render_mode: str | None = None

    def make(self) -> gymnasium.Env[Any, Any]:
        return self.kind(self.render_mode)


def variant(base: type[GymnasiumGame] = Game, **attributes: Any) -> GymnasiumGame:
    """A game with other attributes."""
    made: GymnasiumGame = type("Variant", (base,), attributes)()
    return made


def foot(frames: Any) -> list[int]:
    """What the lower half of each frame shows."""
    return [int(frame[-1, 0, 0]) for frame in frames]


def test_a_chunk_is_four_steps_under_one_action() -> None:
    game = Game()
    assert game.prompts == ["rest", "go"] and game.frame_shape == (8, 8, 3)
    first = game.reset(7)
    assert first.frames.shape == (4, 8, 8, 3) and first.frames.dtype == np.uint8
    assert foot(first.frames) == [7] * 4 and (first.frames[:, :4] == 0).all()
    assert (first.reward, first.valid_frames, first.terminated) == (0.0, 4, False)
    chunk = game.step(1)
    assert foot(chunk.frames) == [8, 9, 10, 11]
    assert (chunk.reward, chunk.valid_frames) == (-2.0, 4) and math.isnan(chunk.health)
    assert isinstance(game.env, Line) and game.env.played == [0] * 4


@pytest.mark.parametrize("terminates", [True, False])
def test_the_rest_of_the_last_chunk_repeats_the_last_picture(terminates: bool) -> None:
    game = variant(kind=type("Ends", (Line,), {"terminates": terminates}))
    game.reset(0)
    game.step(0)
    game.step(0)
    last = game.step(0)
    assert foot(last.frames) == [9, 10, 10, 10]
    assert (last.valid_frames, last.reward) == (2, -1.0)
    assert (last.terminated, last.truncated) == (terminates, not terminates)
    with pytest.raises(NotReset, match="no running episode"):
        game.step(0)
    assert foot(game.reset(3).frames) == [3] * 4


@pytest.mark.parametrize(("steps", "shown"), [(1, [1] * 4), (2, [1, 1, 2, 2]), (4, [1, 2, 3, 4])])
def test_pictures_are_held_where_a_chunk_has_fewer_steps(steps: int, shown: list[int]) -> None:
    game = variant(steps_per_chunk=steps)
    game.reset(0)
    chunk = game.step(0)
    assert foot(chunk.frames) == shown
    assert chunk.reward == -0.5 * steps and chunk.valid_frames == 4


def test_an_environment_may_draw_into_one_buffer() -> None:
    buffer = np.zeros((16, 32, 3), np.uint8)

    def observe(self: Line) -> Any:
        buffer[:] = self.count
        return buffer

    game = variant(kind=type("Reusing", (Line,), {"observe": observe}), size=buffer.shape[:2])
    assert foot(game.reset(0).frames) == [0] * 4
    assert foot(game.step(0).frames) == [1, 2, 3, 4]


def test_an_endless_game_is_cut_off() -> None:
    game = variant(kind=type("Endless", (Line,), {"length": 10**6}), max_chunks=3)
    game.reset(0)
    ends = [game.step(0) for _ in range(3)]
    assert [(c.terminated, c.truncated) for c in ends] == [(False, False)] * 2 + [(False, True)]


def test_what_is_rendered_comes_before_what_is_observed() -> None:
    assert foot(variant(render_mode="rgb_array").reset(0).frames) == [100] * 4


def test_the_picture_may_be_one_entry_of_the_observation() -> None:
    class Dictionary(Line):
        def observe(self) -> Any:
            return {"speed": np.zeros(2), "screen": super().observe(), "map": np.zeros((4, 4, 3))}

    assert foot(variant(kind=Dictionary).reset(5).frames) == [5] * 4


def test_prompts_may_stand_for_members_of_another_space() -> None:
    class Wheel(Line):
        action_space = spaces.Box(-1, 1, (2,), np.float32)

    game = variant(kind=Wheel, actions={"straight": [0, 0], "left": [-1, 0.5]})
    game.reset(0)
    game.step(1)
    assert isinstance(game.env, Wheel)
    np.testing.assert_array_equal(game.env.played[0], np.array([-1, 0.5], np.float32))
    with pytest.raises(ConfigError, match="'left' is not in Box.*not discrete: write out one"):
        variant(kind=Wheel, actions={"straight": [0, 0], "left": 1})


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"actions": {"rest": 3}}, r"the action 3 of 'rest' is not in Discrete\(3\)$"),
        ({"actions": {}}, "needs a name and actions"),
        ({"action_weights": {"fly": 2.0}}, r"action_weights of \['fly'\]"),
        ({"name": ""}, "needs a name and actions"),
        ({"steps_per_chunk": 3}, "steps_per_chunk 3 is not 1, 2 or 4"),
        ({"name": 5}, "name 5 is no text"),
        ({"actions": ["rest", "go"]}, r"actions \['rest', 'go'\] is no dictionary from prompts"),
        ({"actions": {"": 0}}, "is no dictionary from prompts"),
        ({"actions": {3: 0}}, "is no dictionary from prompts"),
        ({"size": 64}, r"size 64 is not \(height, width\)"),
        ({"size": (0, 64)}, r"size \(0, 64\) is not \(height, width\)"),
        ({"size": (64.0, 64)}, r"size \(64.0, 64\) is not \(height, width\)"),
        ({"fps": 0}, "fps 0 is no whole number from 1 on"),
        ({"fps": "fast"}, "fps 'fast' is no whole number"),
        ({"max_chunks": 0}, "max_chunks 0 is no whole number"),
        ({"action_weights": {"rest": -1.0}}, r"action_weights {'rest': -1.0}: numbers from 0 on"),
        ({"action_weights": {"rest": "often"}}, "numbers from 0 on, not all 0"),
        ({"actions": {"rest": 0}, "action_weights": {"rest": 0}}, "numbers from 0 on, not all 0"),
        ({"make": lambda self: None}, "make gives NoneType, no Gymnasium environment"),
    ],
)
def test_wrong_attributes_are_named(attributes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        variant(**attributes)


def test_frames_of_different_sizes_are_refused() -> None:
    class Grows(Line):
        def observe(self) -> Any:
            return np.zeros((16 + self.count, 32, 3), np.uint8)

    game = variant(kind=Grows)
    game.reset(0)
    with pytest.raises(DatasetError, match=r"frames of different sizes, \(16, 32, 3\) and then"):
        game.step(0)


def test_a_game_without_pictures_is_refused() -> None:
    class Blind(Line):
        def observe(self) -> Any:
            return np.zeros(4, np.float32)

    with pytest.raises(DatasetError, match=r"no picture .*float32 \[4\].*rgb_array"):
        variant(kind=Blind).reset(0)


def test_actions_and_moments_are_checked() -> None:
    game = Game()
    with pytest.raises(NotReset):
        game.step(0)
    game.reset(0)
    for wrong in (-1, 2):
        with pytest.raises(ActionError, match="not one of 0 to 1"):
            game.step(wrong)
    game.close()
    game.close()
    assert isinstance(game.env, Line) and game.env.closed
    with pytest.raises(NotReset, match="closed"):
        game.reset(0)
