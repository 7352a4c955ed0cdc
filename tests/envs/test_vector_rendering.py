"""What a batch shows: one entry a slot, ends of episodes too, and copies of batches that render."""

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence as equal

from magi_world.envs.rendering import Window
from magi_world.envs.vector_env import WorldVectorEnv
from tests.envs.vector_envs import make_batch, mask

Make = Callable[..., WorldVectorEnv]


@pytest.fixture
def make(tiny_world_path: Path) -> Make:
    """Builds the native batch over the tiny world."""
    return partial(make_batch, tiny_world_path)


def test_rendering_is_one_entry_a_slot(make: Make) -> None:
    env = make(render_mode="rgb_array", ignore_termination=True)
    obs, _ = env.reset(seed=0)
    pictures = env.render()
    assert pictures is not None and len(pictures) == 3
    assert all(equal(pictures[i], obs[i, -1], exact=True) for i in range(3))
    films = make(render_mode="rgb_array_list", observations="latent", ignore_termination=True)
    films.reset(seed=0)
    films.step([0, 0, 0])
    films.reset(options=mask(1))
    rendered = films.render()
    assert rendered is not None and [len(film) for film in rendered] == [8, 4, 8]
    human = make(render_mode="human", horizon=1)
    human.reset(seed=0)
    for _ in range(3):
        human.step([0, 0, 0])
    assert human.render() is None
    human.close()


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_the_end_of_an_episode_is_rendered(
    make: Make, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keywords: dict[str, Any] = {
        "num_envs": 1, "autoreset_mode": mode, "horizon": 2, "ignore_termination": True,
    }  # fmt: skip
    films = make(render_mode="rgb_array_list", **keywords)
    first, _ = films.reset(seed=0)
    seen = [first[0]]
    for _ in range(2):
        obs, _, _, _, infos = films.step([1])
        seen.append(infos["final_obs"][0] if "final_obs" in infos else obs[0])
    rendered = films.render()
    assert rendered is not None
    assert np.array_equal(rendered[0][:12], np.concatenate(seen))
    assert len(rendered[0]) == (16 if mode == "SAME_STEP" else 12)
    for _ in range(7):  # unfetched episodes are dropped all the same
        films.step([1])
    rendered = films.render()
    assert rendered is not None and len(rendered[0]) <= 20

    shown: list[int] = []
    human = make(render_mode="human", **keywords)
    monkeypatch.setattr(Window, "show", lambda self, frames: shown.append(len(frames)))
    human.reset(seed=0)
    for _ in range(3):
        human.step([1])
    assert shown == [4] * 4  # a chunk a step


def test_an_environment_that_renders_can_be_pickled(make: Make) -> None:
    env = make(render_mode="rgb_array_list", observations="latent")
    env.reset(seed=0)
    env.reset(options=mask(1))
    env.step([0, 1, 2])
    state = env.get_state()
    for _ in range(2):
        copied = pickle.loads(pickle.dumps(env))
        assert equal(copied.render(), env.render(), exact=True)
        assert equal(copied.step([0, 1, 2]), env.step([0, 1, 2]), exact=True)
        env.set_state(state)
