import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.env_checker import check_env

import magi_world  # noqa: F401 (registers the environments)
from magi_world.envs.wrappers import ChannelStack, LastFrame
from magi_world.errors import ConfigError

WRAPPERS = [LastFrame, ChannelStack]


class Stub(gym.Env[Any, Any]):
    """Two frames of 3x4 pixels, each byte different."""

    observation_space: spaces.Space[Any] = spaces.Box(0, 255, (2, 3, 4, 3), np.uint8)
    action_space: spaces.Space[Any] = spaces.Discrete(3)
    frames = np.arange(72, dtype=np.uint8).reshape(2, 3, 4, 3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        return self.frames, {"chunk": 0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.frames + np.uint8(1), 1.0, False, True, {"chunk": 1}


def test_last_frame_is_the_last() -> None:
    env = LastFrame(Stub())
    observation, info = env.reset()
    assert observation in env.observation_space
    assert (observation == Stub.frames[1]).all()
    assert not np.shares_memory(observation, Stub.frames)
    assert info == {"chunk": 0}
    observation, *rest = env.step(0)
    assert (observation == Stub.frames[1] + 1).all()
    assert rest == [1.0, False, True, {"chunk": 1}]


def test_channels_hold_the_oldest_frame_first() -> None:
    env = ChannelStack(Stub())
    observation, _ = env.reset()
    assert observation in env.observation_space
    assert observation.shape == (3, 4, 6)
    assert (observation[..., :3] == Stub.frames[0]).all()
    assert (observation[..., 3:] == Stub.frames[1]).all()
    assert observation.flags.c_contiguous


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-100, 100, (16, 1, 8, 8), np.float32),
        spaces.Box(0, 255, (64, 64, 3), np.uint8),
        spaces.Dict(frames=Stub.observation_space),
    ],
)
def test_other_observations_are_refused(wrapper: Any, space: spaces.Space[Any]) -> None:
    env = Stub()
    env.observation_space = space
    with pytest.raises(
        ConfigError, match=f"{wrapper.__name__} needs frames.*observations='frames'"
    ):
        wrapper(env)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_stable_baselines_is_content(wrapper: Any, tiny_world_path: Path) -> None:
    env = gym.make("magi_world/DoomTakeCover-v0", world=str(tiny_world_path), actions="discrete")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(wrapper(env))
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapped_environment_is_remade_from_its_spec(wrapper: Any, tiny_world_path: Path) -> None:
    env = wrapper(gym.make("magi_world/DoomTakeCover-v0", world=str(tiny_world_path)))
    text = env.spec.to_json()
    assert json.loads(text)["additional_wrappers"][-1]["name"] == wrapper.__name__
    twin = gym.make(EnvSpec.from_json(text))
    assert isinstance(twin, wrapper)
    assert twin.observation_space == env.observation_space
    assert (twin.reset(seed=0)[0] == env.reset(seed=0)[0]).all()
