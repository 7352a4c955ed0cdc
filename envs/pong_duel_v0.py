"""Two-player Pong as PettingZoo expects a game: a module with `env`, `raw_env`, `parallel_env`.

    from magi_world.envs import pong_duel_v0

    env = pong_duel_v0.parallel_env(actions="discrete")

Keywords are those of `magi_world.envs.multi_env.MultiEnv`.
"""

from typing import Any

from pettingzoo.utils import wrappers
from pettingzoo.utils.conversions import parallel_to_aec_wrapper

from magi_world.envs.multi_env import MultiEnv

__all__ = ["env", "parallel_env", "raw_env"]


def parallel_env(**keywords: Any) -> MultiEnv:
    """Both players act at once."""
    return MultiEnv(**keywords)


def raw_env(**keywords: Any) -> Any:
    """The players act in turn; a chunk is generated when all of them have (PettingZoo's AEC)."""
    return parallel_to_aec_wrapper(parallel_env(**keywords))


def env(**keywords: Any) -> Any:
    """`raw_env`, which also says where its methods are called in the wrong order."""
    return wrappers.OrderEnforcingWrapper(raw_env(**keywords))
