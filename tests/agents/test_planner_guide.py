"""A trained agent guides a planner: its policy behind each prompt, its value beyond the horizon."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magi_world.agents.evaluation import play_dream
from magi_world.agents.files import describe
from magi_world.agents.guide import Guide
from magi_world.agents.planner import Planner
from magi_world.agents.ppo_agent import PPOAgent, build_network
from magi_world.agents.random_agent import NoOp
from magi_world.errors import AgentError
from magi_world.world import World
from tests.agents.test_planner import lock, planner


class Counting:
    """A guide that wants prompt 2 from its second chunk on and values a row by what it has seen."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def start(self, latents: Tensor) -> Tensor:
        return torch.zeros(len(latents), 1)

    def see(self, memory: Tensor, latents: Tensor) -> Tensor:
        return torch.cat([memory, latents.reshape(len(memory), -1)[:, :1]], dim=1)

    def ask(self, memory: Tensor) -> tuple[np.ndarray[Any, Any], Tensor]:
        self.asked.append(memory.shape[1])
        return np.full(len(memory), 2), memory[:, 1:].sum(1)


def test_a_policy_goes_on_behind_each_prompt() -> None:
    guide: Any = Counting()
    search = planner(method="policy", guide=guide, horizon=3, dreams=2, gamma=0.5)
    from_here = lock([9])
    plan = search.plan(from_here, memory=torch.zeros(1, 1))
    entered = from_here.forks[0].entered
    assert entered == [[0, 0, 1, 1, 2, 2], [2] * 6, [2] * 6]
    # nothing is paid, so the guide's value decides: the sum of what was entered, discounted
    assert plan.actions.tolist() == [2] and plan.sequences.tolist() == [[2]]
    assert plan.returns.tolist() == [0.5**3 * (2 + 2 + 2)]
    assert guide.asked == [2, 3, 4]


def test_what_a_guide_needs_is_named() -> None:
    guide: Any = Counting()
    with pytest.raises(AgentError, match="needs a guide"):
        planner(method="policy")
    with pytest.raises(AgentError, match="give one of them"):
        planner(guide=guide, value=lambda latents: latents)
    with pytest.raises(AgentError, match="memory of what was seen"):
        planner(guide=guide, method="hold").plan(lock([1]))


@pytest.mark.parametrize("reward", ["penalty", "survival"])
def test_an_agent_is_a_guide(tiny_world: World, reward: str) -> None:
    shape = list(tiny_world.config.latent_shape)
    description = describe(tiny_world, "ppo", "dream") | {
        "latent_shape": shape, "history": 2, "channels": [4, 4], "hidden": 8, "greedy": True,
        "args": {"gamma": 0.9, "reward": reward, "signal_weights": {}},
    }  # fmt: skip
    network = build_network(description).initialise(torch.Generator().manual_seed(0))
    agent = PPOAgent(network, description)
    guide = Guide(agent, tiny_world)
    high = tiny_world.card["reward_range"][1]
    assert guide.unit == pytest.approx(high / 0.1 if reward == "penalty" else high)
    latents = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    agent.reset(3, seed=0)
    memory = guide.start(latents[:, None][:, 0])
    for step in range(3):  # what the guide would do is what the agent does
        seen = latents + step
        memory = guide.start(seen) if not step else guide.see(memory, seen)
        actions, worth = guide.ask(memory)
        assert actions.tolist() == agent.act(seen).tolist()
        value = network(memory)[1]
        expected = guide.unit * (value + 1 if reward == "penalty" else value)
        torch.testing.assert_close(worth, expected)
    planned = Planner(tiny_world, guide=guide, method="policy", horizon=2, gamma=guide.gamma)
    returns = play_dream(tiny_world, planned, episodes=2, first_seed=0)
    assert returns.shape == (2,) and np.isfinite(returns).all()


def test_only_a_trained_agent_guides(tiny_world: World) -> None:
    with pytest.raises(AgentError, match="has no value"):
        Guide(NoOp(), tiny_world)
