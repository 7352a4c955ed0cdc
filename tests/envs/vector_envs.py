"""The native batch over the tiny world, as `make_vec` makes it."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from magi_world.envs.vector_env import WorldVectorEnv

ENV_ID = "magi_world/DoomTakeCover-v0"


def make_batch(path: Path, /, num_envs: int = 3, **keywords: Any) -> WorldVectorEnv:
    """A batch with discrete actions unless told otherwise; most episodes end at once."""
    keywords = {"world": str(path), "actions": "discrete", **keywords}
    env = gym.make_vec(ENV_ID, num_envs=num_envs, **keywords)
    assert isinstance(env, WorldVectorEnv)
    return env


def mask(*slots: int, n: int = 3) -> dict[str, npt.NDArray[np.bool_]]:
    """The reset option that names these slots."""
    return {"reset_mask": np.isin(np.arange(n), slots)}
