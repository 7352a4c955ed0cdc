"""Libraries that know nothing of this package run over its environments, unmodified."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import (
    FrameStackObservation,
    GrayscaleObservation,
    RecordEpisodeStatistics,
    ResizeObservation,
    TimeLimit,
)
from gymnasium.wrappers.vector import RecordEpisodeStatistics as VectorStatistics

from magi_world.envs.wrappers import LastFrame, NumericInfos

ENV_ID = "magi_world/DoomTakeCover-v0"


def keywords(path: Path, **more: Any) -> dict[str, Any]:
    return {"world": str(path), "actions": "discrete", "ignore_termination": True, **more}


# ---------------------------------------------------------------- Gymnasium

FORKED = """
import sys
import gymnasium as gym, torch
import magi_world
torch.set_num_threads(2)
world = magi_world.load(sys.argv[1])
rollout = world.rollout()
rollout.reset()
rollout.step(["strafe left"])
torch.ones(400, 400) @ torch.ones(400, 400)  # the pool of threads runs by now
envs = gym.make_vec(
    sys.argv[2], num_envs=2, vectorization_mode="async", vector_kwargs={"context": "fork"},
    world=sys.argv[1], actions="discrete",
)
envs.reset(seed=0)
envs.step([1, 2])
envs.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_forked_environments_run_after_the_parent_used_its_threads(tiny_world_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", FORKED, str(tiny_world_path), ENV_ID],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        timeout=120,
        check=True,
    )


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP"])
def test_statistics_of_episodes_over_the_native_batch(tiny_world_path: Path, mode: str) -> None:
    envs = gym.make_vec(
        ENV_ID, num_envs=3, autoreset_mode=mode, **keywords(tiny_world_path, horizon=4)
    )
    recorded = VectorStatistics(envs)
    recorded.reset(seed=0)
    rewards = np.zeros(3)
    lengths: list[int] = []
    for _ in range(11):
        _, reward, terminated, truncated, infos = recorded.step(envs.action_space.sample())
        rewards += reward
        # SAME_STEP keeps what belongs to the end beside the beginning
        if (terminated | truncated).any():
            assert infos["episode"]["r"] == pytest.approx(rewards, abs=1e-4)
            lengths += infos["episode"]["l"].tolist()
            rewards[:] = 0
    assert lengths and set(lengths) == {4}


def test_wrappers_of_single_environments(tiny_world_path: Path) -> None:
    env: Any = gym.make(ENV_ID, **keywords(tiny_world_path))
    stacked = FrameStackObservation(LastFrame(env), 3)
    limited = RecordEpisodeStatistics(TimeLimit(stacked, 5))
    observation, _ = limited.reset(seed=0)
    assert observation in limited.observation_space and observation.shape == (3, 64, 64, 3)
    for length in range(1, 6):
        observation, _, terminated, truncated, info = limited.step(1)
        assert observation in limited.observation_space
        assert not terminated and truncated == (length == 5)
    assert info["episode"]["l"] == 5


def test_pictures_of_another_size_and_without_colours(tiny_world_path: Path) -> None:
    env: Any = gym.make(ENV_ID, **keywords(tiny_world_path))
    small = ResizeObservation(GrayscaleObservation(LastFrame(env)), (42, 36))
    for observation in (small.reset(seed=0)[0], small.step(2)[0]):
        assert observation.shape == (42, 36) and observation.dtype == np.uint8
        assert observation in small.observation_space and observation.std() > 0


def test_a_video_is_recorded(tiny_world_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("moviepy")
    from gymnasium.wrappers import RecordVideo

    env = gym.make(ENV_ID, **keywords(tiny_world_path, render_mode="rgb_array", horizon=3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # moviepy's own
        recorder: Any = RecordVideo(env, str(tmp_path), episode_trigger=lambda episode: True)
        recorder.reset(seed=0)
        while not recorder.step(1)[3]:
            pass
        recorder.close()
    assert [file.suffix for file in tmp_path.iterdir()] == [".mp4"]


def test_processes_of_gymnasium(tiny_world_path: Path) -> None:
    """AsyncVectorEnv holds one world a process; a row is the single environment's, to the bit."""
    envs = gym.make_vec(
        ENV_ID, num_envs=2, vectorization_mode="async", vector_kwargs={"context": "spawn"},
        **keywords(tiny_world_path),
    )  # fmt: skip
    single = gym.make(ENV_ID, **keywords(tiny_world_path))
    try:
        envs.reset(seed=4)
        single.reset(seed=5)
        for _ in range(2):
            rows, one = envs.step(np.array([0, 1])), single.step(1)
        assert (rows[0][1] == one[0]).all() and rows[4]["chunk"].tolist() == [2, 2]
    finally:
        envs.close()


def test_numeric_infos_hold_no_text(tiny_world_path: Path) -> None:
    given = keywords(tiny_world_path, horizon=1, autoreset_mode="SAME_STEP")
    native = gym.make_vec(ENV_ID, num_envs=2, **given)
    envs = NumericInfos(native)
    assert set(envs.reset(seed=0)[1]) == {
        "chunk", "_chunk", "termination_probability", "_termination_probability",
    }  # fmt: skip
    infos = envs.step([0, 1])[4]
    assert infos["final_obs"][0].shape == (4, 64, 64, 3)
    assert set(infos["final_info"]) == {
        "chunk", "_chunk", "termination_probability", "_termination_probability",
    }  # fmt: skip


# ---------------------------------------------------------------- learners


def test_stable_baselines3_learns(tiny_world_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    def make() -> Any:
        return LastFrame(gym.make(ENV_ID, **keywords(tiny_world_path, horizon=5)))

    for env in (make(), DummyVecEnv([make, make])):
        model = PPO("CnnPolicy", env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
        before = [parameter.detach().clone() for parameter in model.policy.parameters()]
        model.learn(32)
        assert model.num_timesteps == 32
        assert any(
            not torch.equal(old, new)
            for old, new in zip(before, model.policy.parameters(), strict=True)
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["SAME_STEP", "DISABLED", None])
def test_torchrl_wraps_it(tiny_world_path: Path, mode: str | None) -> None:
    """The native batch, and with None a single environment."""
    pytest.importorskip("torchrl")
    from torchrl.envs import GymWrapper, check_env_specs

    given = keywords(tiny_world_path, observations="latent", horizon=3)
    env: Any
    if mode is None:
        env = GymWrapper(gym.make(ENV_ID, **given), categorical_action_encoding=True)
    else:
        native = gym.make_vec(ENV_ID, num_envs=2, autoreset_mode=mode, **given)
        env = GymWrapper(NumericInfos(native), categorical_action_encoding=True)
        assert env.batch_size == torch.Size([2])
    check_env_specs(env)
    rolled = env.rollout(8, break_when_any_done=False)
    rows = rolled["next", "observation"]
    assert rows.shape[-4:] == (16, 1, 8, 8) and rows.isfinite().all()
    assert rolled["next", "truncated"].any()
