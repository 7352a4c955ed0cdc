"""An agent that is shown a still: what it scores is what it does without seeing anything move."""

from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from magi_world.agents import Agent


class Frozen:
    """Plays an agent that sees the first chunk of each episode for as long as the episode lasts.

    Its distance to the agent itself says how much of the score comes from looking. A row that
    is given again after its episode has ended stays with that episode's first chunk.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self._first: npt.NDArray[Any] | Tensor | None = None

    @property
    def observations(self) -> str:
        """The form that the agent reads."""
        return self.agent.observations

    @property
    def policy(self) -> str:
        """How the agent chooses, as tables print it."""
        return str(getattr(self.agent, "policy", "not told"))

    def reset(self, n: int, seed: int | None = None) -> None:
        """Begin n episodes; see `Agent.reset`."""
        self.agent.reset(n, seed=seed)
        self._first = None

    def act(self, observations: npt.NDArray[Any] | Tensor) -> npt.NDArray[np.int64]:
        """Answer the first observations that came after `reset`, whatever is given now."""
        if self._first is None:
            if isinstance(observations, Tensor):
                self._first = observations.clone()
            else:
                self._first = np.array(observations)
        return self.agent.act(self._first)
