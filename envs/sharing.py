"""How several agents share one picture and one prompt, for `envs/multi_env.py` and its batches."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from magi_world.envs.spaces import as_index, as_prompt, choose
from magi_world.errors import ActionError, ConfigError, PromptError
from magi_world.players import compose, players_of

ARBITRATIONS = ("vote", "turns")
VIEWS = ("whole", "own")


class Arbiter:
    """Makes the prompt of a chunk from what the agents of one world say, and hands out its rewards.

    Args:
        card: the world's.
        agents: their names.
        arbitration: "vote", "turns", or None where the card's template takes all of them.
    """

    def __init__(self, card: Mapping[str, Any], agents: Sequence[str], arbitration: str | None):
        self.card = card
        self.agents = list(agents)
        self.arbitration = arbitration
        self._chunk = 0

    @classmethod
    def of(cls, card: Mapping[str, Any], arbitration: str | None, num_voters: int) -> "Arbiter":
        """The arbiter of a world.

        Raises:
            ConfigError: players and arbitration do not go together, or one of them is needed.
        """
        players = players_of(card)
        if players:
            if arbitration is not None:
                raise ConfigError(
                    f"arbitration {arbitration!r}: the world {card['name']!r} has the players "
                    f"{players}, whose actions all count"
                )
            return cls(card, players, None)
        if arbitration is None:
            raise ConfigError(
                f"the world {card['name']!r} is for one agent: several need arbitration, one of "
                f"{', '.join(map(repr, ARBITRATIONS))}"
            )
        choose("arbitration", arbitration, ARBITRATIONS)
        if type(num_voters) is not int or num_voters < 1:
            raise ConfigError(f"num_voters {num_voters!r}: a whole number, 1 or more, is needed")
        return cls(card, [f"agent_{number}" for number in range(num_voters)], arbitration)

    def begin(self, chunk: int = 0) -> None:
        """An episode begins, and the first agent has the first turn; or it goes on at a chunk."""
        self._chunk = chunk

    def advance(self) -> None:
        """The next chunk comes."""
        self._chunk += 1

    def prompt(self, texts: Mapping[str, str]) -> str:
        """The chunk's prompt from the words of some of the agents; the others do the no-op."""
        if self.arbitration is None:
            return compose(self.card, texts)
        noop: str = self.card["prompts"][0]
        if self.arbitration == "turns":
            return texts.get(self.agents[self._chunk % len(self.agents)], noop)
        votes = [texts.get(agent, noop) for agent in self.agents]
        return Counter(votes).most_common(1)[0][0]  # of equals the one that was met first

    def rewards(self, given: Sequence[Any]) -> dict[str, Any]:
        """The reward of every agent: its own, or the only one for all of them."""
        shares = given if self.arbitration is None else [given[0]] * len(self.agents)
        return dict(zip(self.agents, shares, strict=True))


class OwnView:
    """What an agent sees of an observation: all of it, or the half that the card gives it.

    Args:
        card: the world's; `sides` names the half of each player.
        view: "whole" or "own".

    Raises:
        ConfigError: another view, or "own" in a world whose card names no sides.
    """

    def __init__(self, card: Mapping[str, Any], view: str) -> None:
        self.own = choose("view", view, VIEWS) == "own"
        self._sides: Mapping[str, str] = card.get("sides", {})
        if self.own and not self._sides:
            raise ConfigError(f"view 'own': the card of {card['name']!r} names no sides")

    def space(self, whole: spaces.Space[Any], agent: str) -> spaces.Space[Any]:
        """The space of what an agent sees; a new object."""
        if isinstance(whole, spaces.Dict):
            return spaces.Dict({name: self.space(one, agent) for name, one in whole.items()})
        assert isinstance(whole, spaces.Box)
        low, high = self.of(whole.low, agent), self.of(whole.high, agent)
        return spaces.Box(low, high, dtype=whole.dtype.type)

    def of(self, observation: Any, agent: str) -> Any:
        """An agent's part of an observation, as arrays or tensors of its own.

        Frames `[..., H, W, 3]` are bytes, latents `[..., h, w]` are not; any number of dimensions
        may stand before.
        """
        if isinstance(observation, Mapping):
            return {name: self.of(part, agent) for name, part in observation.items()}
        if not self.own:
            return self.copy(observation)
        axis = observation.ndim - (2 if observation.dtype in (np.uint8, torch.uint8) else 1)
        middle = observation.shape[axis] // 2
        half = slice(None, middle) if self._sides[agent] == "left" else slice(middle, None)
        return self.copy(observation[(slice(None),) * axis + (half,)])

    @staticmethod
    def copy(observation: Any) -> Any:
        """The same observation in memory of its own."""
        if isinstance(observation, Mapping):
            return {name: OwnView.copy(part) for name, part in observation.items()}
        if isinstance(observation, torch.Tensor):
            return observation.clone()
        return np.array(observation)


def read_action(action: Any, form: str, prompts: Sequence[str], max_length: int) -> str:
    """The words of one agent's action.

    Raises:
        PromptError, ActionError: a wrong one.
    """
    if form == "text":
        return as_prompt(action, max_length)
    return prompts[as_index(action, prompts)]


def texts_of(
    actions: Mapping[str, Any], living: Sequence[str], read: Callable[[Any], str]
) -> dict[str, str]:
    """The words of every agent's action.

    Raises:
        ActionError: no mapping, or an agent that is not alive.
        PromptError, ActionError: what `read` refuses; the message names the agent.
    """
    if not isinstance(actions, Mapping):
        raise ActionError(f"actions {actions!r}: a dictionary by agent is needed")
    strangers = [agent for agent in actions if agent not in living]
    if strangers:
        raise ActionError(f"actions of {strangers}: alive are {list(living)}")
    texts = {}
    for agent, action in actions.items():
        try:
            texts[agent] = read(action)
        except (PromptError, ActionError) as wrong:
            raise type(wrong)(f"{agent}: {wrong}") from None
    return texts
