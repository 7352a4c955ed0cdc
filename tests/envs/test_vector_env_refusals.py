"""What `WorldVectorEnv` refuses: each wrong value by name; the episodes stay as they were."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence as equal

from magi_world.envs.vector_env import WorldVectorEnv
from magi_world.errors import ActionError, ConfigError, PromptError, ResetOptionError
from magi_world.world import World
from tests.envs.vector_envs import make_batch, mask
from tests.tiny_world import make_tiny_world

Make = Callable[..., WorldVectorEnv]


@pytest.fixture
def make(tiny_world_path: Path) -> Make:
    """Builds the native batch over the tiny world."""
    return partial(make_batch, tiny_world_path)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"num_envs": 0}, "num_envs 0"),
        ({"autoreset_mode": "later"}, "autoreset_mode 'later'"),
        ({"output": "jax"}, "output 'jax'"),
        ({"horizon": 0}, "horizon 0"),
        ({"max_episode_steps": 0}, "max_episode_steps 0"),
        ({"actions": "wishes"}, "actions 'wishes'"),
        ({"ignore_termination": "False"}, "ignore_termination 'False'"),
    ],
)
def test_wrong_keywords(make: Make, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make(**keywords)


def test_a_world_without_openings_cannot_restart_by_itself() -> None:
    world = make_tiny_world()
    world.bank = World(world.card).bank
    with pytest.raises(ConfigError, match="no clips to begin episodes with"):
        WorldVectorEnv(2, world)
    env = WorldVectorEnv(2, world, autoreset_mode="DISABLED")
    with pytest.raises(ResetOptionError, match="clip 0: the world has no clips"):
        env.reset(options={"clip": 0})
    env.reset(seed=0, options={"prompt": "strafe left"})
    env.step(["strafe left", "stand still"])


def test_wrong_calls_change_nothing(make: Make) -> None:
    env, twin = (make(actions="text", ignore_termination=True) for _ in range(2))
    with pytest.raises(ResetNeeded, match="before the first reset"):
        env.step(["strafe left"] * 3)
    with pytest.raises(ResetNeeded, match=r"slots \[0, 1, 2\] were never reset"):
        env.reset(options=mask(1))
    for each in (env, twin):
        each.reset(seed=0)
    wrong: list[tuple[type[Exception], str, Callable[[], object]]] = [
        (PromptError, "slot 1", lambda: env.step(["strafe left", "", "strafe left"])),
        (PromptError, "slot 2: .* 400 UTF-8", lambda: env.step(["a", "b", "ü" * 200])),
        (PromptError, "a list of 3", lambda: env.step(["strafe left"] * 2)),
        (PromptError, "a list of 3", lambda: env.step("strafe left")),
        (ResetOptionError, "bool array", lambda: env.reset(options={"reset_mask": [True] * 3})),
        (ResetOptionError, "names no slot", lambda: env.reset(options=mask())),
        (ResetOptionError, "unknown", lambda: env.reset(options={"level": 3})),
        (ResetOptionError, "clip", lambda: env.reset(seed=4, options={"clip": 99})),
        (ConfigError, "2 seeds", lambda: env.reset(seed=[1, 2])),
        (ConfigError, "allowed are", lambda: env.reset(seed=2**63 - 2)),
        (ConfigError, "seed True", lambda: env.reset(seed=True)),
        (ConfigError, "seed True", lambda: env.reset(seed=[1, True, 3])),
        (gym.error.Error, "Seed", lambda: env.reset(seed=-1)),
        (gym.error.Error, "Seed", lambda: env.reset(seed=np.array(3))),  # type: ignore[arg-type]
    ]
    random = str(env.np_random.bit_generator.state)
    for error, words, call in wrong:
        with pytest.raises(error, match=words):
            call()
    assert str(env.np_random.bit_generator.state) == random
    fresh = make()
    random = str(fresh.np_random.bit_generator.state)
    with pytest.raises(ResetOptionError):
        fresh.reset(options={"clip": 99})
    assert str(fresh.np_random.bit_generator.state) == random
    assert equal(env.step(["strafe left"] * 3), twin.step(["strafe left"] * 3), exact=True)
    discrete = make()
    discrete.reset(seed=0)
    with pytest.raises(ActionError, match="slot 2: action 3"):
        discrete.step(np.array([0, 0, 3]))
    with pytest.raises(ActionError, match="slot 0: action 0.5"):
        discrete.step(np.array([0.5, 0, 0]))
