import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence as equal

from magi_world.envs.rendering import RENDER_MODES, Renderer, Window, render_fps
from magi_world.envs.spaces import Frames
from magi_world.envs.world_env import WorldEnv
from magi_world.errors import MissingPackage


def chunk(first: int) -> Frames:
    """Two frames of 3x4 pixels, of one brightness each: `first` and the next."""
    return np.full((2, 3, 4, 3), np.array([first, first + 1]).reshape(2, 1, 1, 1), np.uint8)


def make(mode: str | None) -> Renderer:
    return Renderer(mode, fps=35, title="test")


def brightness(frames: Any) -> list[int]:
    assert isinstance(frames, list)
    assert all(frame.shape == (3, 4, 3) and frame.dtype == np.uint8 for frame in frames)
    return [int(frame[0, 0, 0]) for frame in frames]


def test_rates_play_at_the_games_speed() -> None:
    assert render_fps("rgb_array", 35, 4) == 35 / 4
    assert [render_fps(mode, 35, 4) for mode in ("rgb_array_list", "human", None)] == [35] * 3


def test_rgb_array_is_the_last_frame() -> None:
    renderer, frames = make("rgb_array"), chunk(10)
    renderer.add(lambda: frames, first=True)
    picture = renderer.render()
    assert isinstance(picture, np.ndarray)
    assert picture.shape == (3, 4, 3) and (picture == 11).all()
    picture[...] = 0
    assert (frames[-1] == 11).all()  # the caller's own
    renderer.add(lambda: chunk(20))
    assert np.all(renderer.render() == 21)


def test_rgb_array_list_is_every_frame_since_the_last_call() -> None:
    renderer = make("rgb_array_list")
    renderer.add(lambda: chunk(10), first=True)
    renderer.add(lambda: chunk(20))
    assert brightness(renderer.render()) == [10, 11, 20, 21]
    assert renderer.render() == []
    renderer.add(lambda: chunk(30))
    assert brightness(renderer.render()) == [30, 31]
    renderer.add(lambda: chunk(40))
    renderer.add(lambda: chunk(50), first=True)  # drops what was not fetched before the reset
    assert brightness(renderer.render()) == [50, 51]


@pytest.mark.parametrize("mode", ["rgb_array", "rgb_array_list", None])
def test_nothing_is_decoded_before_someone_looks(mode: str | None) -> None:
    def refuse() -> Frames:
        raise AssertionError("decoded")

    renderer = make(mode)
    renderer.add(refuse, first=True)
    renderer.add(refuse)


@pytest.mark.parametrize("mode", RENDER_MODES)
def test_there_is_no_picture_before_the_first_reset(mode: str) -> None:
    with pytest.raises(ResetNeeded, match="before the first reset"):
        make(mode).render()


def test_rendering_without_a_mode_says_so() -> None:
    renderer = make(None)
    renderer.add(lambda: chunk(0), first=True)
    with pytest.warns(UserWarning, match="render_mode.*'rgb_array_list'"):
        assert renderer.render() is None


def test_a_window_shows_each_frame_enlarged() -> None:
    pygame = pytest.importorskip("pygame")
    one, two = Window("one", fps=1000), Window("two", fps=1000)
    one.show(chunk(10))
    two.show(chunk(20))  # dream and reality stand side by side
    for window, value in ((one, 11), (two, 21)):
        pixels = pygame.surfarray.array3d(window._window.get_surface())
        assert pixels.shape == (512, 384, 3) and (pixels == value).all()
    one.close()
    one.close()
    two.show(chunk(30))
    two.close()
    one.show(chunk(40))
    one.close()


def test_a_missing_pygame_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for absent in (None, object()):  # not there, or an old pygame without windows
        monkeypatch.setitem(sys.modules, "pygame", absent)
        with pytest.raises(MissingPackage, match=r"pygame-ce.*pip install 'magi-world\[human\]'"):
            make("human")


@pytest.mark.parametrize("observations", ["frames", "latent"])
@pytest.mark.parametrize("mode", RENDER_MODES)
def test_an_environment_renders(tiny_world_path: Path, observations: str, mode: str) -> None:
    frames = WorldEnv(str(tiny_world_path))
    chunks = [np.asarray(frames.reset(seed=0)[0]), np.asarray(frames.step("strafe left")[0])]
    env = WorldEnv(str(tiny_world_path), observations=observations, render_mode=mode)
    assert env.metadata["render_fps"] == (35 / 4 if mode == "rgb_array" else 35)
    env.reset(seed=0)
    env.step("strafe left")
    picture = env.render()
    if mode == "human":
        assert picture is None
    elif mode == "rgb_array":
        assert np.array_equal(picture, chunks[-1][-1])
    else:
        assert np.array_equal(picture, np.concatenate(chunks))
        for _ in range(2):
            assert equal(pickle.loads(pickle.dumps(env)).render(), env.render(), exact=True)
            env.set_state(env.get_state())
    env.close()
    env.close()
