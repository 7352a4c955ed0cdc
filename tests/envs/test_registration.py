import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.envs.registration import EnvSpec

import magi_world
from magi_world.envs import registration
from magi_world.envs.world_env import WorldEnv

DREAM = "magi_world/DoomTakeCover-v0"


@pytest.mark.parametrize("env_id", registration.ENTRY_POINTS)
def test_ids_are_registered_as_plain_data(env_id: str) -> None:
    spec = gym.spec(env_id)
    assert isinstance(spec.entry_point, str)
    world = registration.WORLDS.get(env_id)
    assert spec.kwargs == ({} if world is None else {"world": world})
    assert spec.max_episode_steps is None  # the environments count their own horizon
    assert spec.nondeterministic is False  # True would skip the determinism checks
    assert spec.additional_wrappers == ()
    assert EnvSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("env_id", registration.ENTRY_POINTS)
def test_entry_points_exist(env_id: str) -> None:
    module, name = registration.ENTRY_POINTS[env_id].split(":")
    assert issubclass(getattr(importlib.import_module(module), name), gym.Env)


def test_registering_again_changes_nothing() -> None:
    before = dict(gym.registry)
    registration.register_environments()  # Gymnasium would warn if it overrode an id
    gym.register_envs(magi_world)
    assert gym.registry == before


def test_an_id_with_the_module_in_front_imports_it(tmp_path: Path) -> None:
    code = (
        "import gymnasium\n"
        f"try: gymnasium.make('magi_world:{DREAM}', world='no-such-world')\n"
        "except ValueError as error: print(type(error).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "WorldNotFound"


def test_a_spec_survives_json(tiny_world_path: Path) -> None:
    keywords: dict[str, Any] = {
        "world": str(tiny_world_path), "actions": "discrete", "observations": "both",
        "render_mode": "rgb_array", "horizon": 3, "steps": 1, "temperature": 0.5,
        "starts": "any", "ignore_termination": True, "device": "cpu", "dtype": "float32",
    }  # fmt: skip
    env = gym.make(DREAM, max_episode_steps=2, **keywords)
    assert env.spec is not None
    text = env.spec.to_json()
    assert json.loads(text)["kwargs"] == keywords
    twin = gym.make(EnvSpec.from_json(text))
    assert isinstance(twin.unwrapped, WorldEnv)
    assert twin.unwrapped.horizon == 3 and twin.unwrapped.ignore_termination
    assert twin.unwrapped.rollout.temperature == 0.5
    assert twin.action_space == env.action_space
    assert twin.observation_space == env.observation_space
    first, again = env.reset(seed=4), twin.reset(seed=4)
    assert (first[0]["frames"] == again[0]["frames"]).all() and first[1] == again[1]
