"""A trained agent as a planner's guide: what it would do, and what it thinks going on is worth.

An agent's network has a value head. It was learned in the units of the agent's own reward and with
its own discount; here it is put into the units of the world's reward, so that a planner can add it
to what it imagined.

Shape suffixes as in `agents/ppo_agent.py`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from magi_world.agents.ppo_agent import PPOAgent, extend_history, flatten_chunk, start_history
from magi_world.errors import AgentError

if TYPE_CHECKING:
    from magi_world.world import World


class Guide:
    """Policy and value of an agent that PPO or Q learning trained.

    Args:
        agent: the agent.
        world: the world that is planned in.

    Raises:
        AgentError: it has no value, is not of this world, or does not say how it was trained.
    """

    def __init__(self, agent: Any, world: "World") -> None:
        if not isinstance(agent, PPOAgent):
            raise AgentError(
                f"{type(agent).__name__} has no value: an agent of PPO or Q learning can guide"
            )
        agent.check_fits(world)
        args = agent.description.get("args", {})
        missing = sorted({"gamma", "reward", "signal_weights"} - set(args))
        if missing:
            raise AgentError(f"the agent does not say its {missing}: it cannot guide a planner")
        self.network = agent.network
        self.history = int(agent.description["history"])
        self.gamma = float(args["gamma"])
        """discount that its value was learned with"""
        low, high = map(float, world.card["reward_range"])
        self._penalty = args["reward"] == "penalty"
        if self._penalty:
            # a death costs 1 there; the same life earns `high` a chunk, discounted, until it ends
            self.unit = high / (1 - self.gamma)
        else:
            self.unit = high if args["reward"] == "survival" else max(-low, high) or 1.0
        """what 1 of the agent's reward is in that of the world"""
        self.signal_weights: Mapping[str, float] = {
            name: weight * self.unit for name, weight in args["signal_weights"].items()
        }
        """what the agent paid for signals, in the world's units"""
        self._softness = float(args.get("softness", 0.0))
        """what 1 of log-probability is worth to an agent of `agents/fitted_q.py`, whose value is
        the mean over actions; PPO's is that of its policy"""

    def start(self, latents_NZPhw: Tensor) -> Tensor:
        """The memory of rows that have seen one chunk, `[N, C, h, w]`."""
        return start_history(flatten_chunk(latents_NZPhw), self.history)

    def see(self, stack_NChw: Tensor, latents_NZPhw: Tensor) -> Tensor:
        """The memory after one more chunk."""
        return extend_history(stack_NChw, flatten_chunk(latents_NZPhw))

    @torch.inference_mode()
    def ask(self, stack_NChw: Tensor) -> tuple[npt.NDArray[np.int64], Tensor]:
        """The most probable actions `[N]`, and what going on is worth, in the world's units."""
        logp_NA, value_N = self.network(stack_NChw)
        value_N = value_N + self._softness * (logp_NA.amax(-1) - logp_NA.mean(-1))
        worth = value_N + 1 if self._penalty else value_N
        return logp_NA.argmax(-1).cpu().numpy(), self.unit * worth
