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


class _InTurn(parallel_to_aec_wrapper[str, Any, Any]):  # type: ignore[misc]
    """PettingZoo's wrapper, but a wrong action is refused when it is given.

    By itself it keeps the action until all players have acted, and with a wrong one of an earlier
    player no later call could succeed. What is checked is therefore the prompt that the action
    makes beside those of the players before; the players after can always say the least.
    """

    def step(self, action: Any) -> None:
        agent = self.agent_selection
        if not (self.terminations[agent] or self.truncations[agent]):
            order = self._agent_selector.agent_order
            settled = {one: self._actions[one] for one in order[: order.index(agent)]}
            self.env.check_action(agent, action, settled)
        super().step(action)


def raw_env(**keywords: Any) -> Any:
    """The players act in turn; a chunk is generated when all of them have (PettingZoo's AEC)."""
    return _InTurn(parallel_env(**keywords))


def env(**keywords: Any) -> Any:
    """`raw_env`, which also says where its methods are called in the wrong order."""
    return wrappers.OrderEnforcingWrapper(raw_env(**keywords))
