"""An agent that is shown a still: the first chunk of each episode, however its pictures arrive."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from magi_world.agents import load
from magi_world.agents.evaluation import describe_policy, play_dream
from magi_world.agents.frozen import Frozen
from magi_world.errors import AgentError
from magi_world.world import World
from tests.agents.fork import new_agent, some_latents


class Echo:
    """Answers with the first number that it sees in a row."""

    observations = "frames"

    def reset(self, n: int, seed: int | None = None) -> None:
        self.begun = (n, seed)

    def act(self, observations: Any) -> npt.NDArray[np.int64]:
        return np.asarray([int(row.flatten()[0]) for row in observations], np.int64)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_every_chunk_is_the_first_one(kind: str) -> None:
    inner = Echo()
    agent = Frozen(inner)
    assert agent.observations == "frames"
    agent.reset(2, seed=5)
    assert inner.begun == (2, 5)
    seen: Any = np.array([[1.0], [2.0]])
    if kind == "torch":
        seen = torch.from_numpy(seen)
    assert agent.act(seen).tolist() == [1, 2]
    seen[:] = 9.0  # callers write new chunks into the same array
    assert agent.act(seen).tolist() == [1, 2]
    agent.reset(2)
    assert agent.act(seen).tolist() == [9, 9]


def test_by_its_name(tmp_path: Path) -> None:
    new_agent(greedy=True).save(tmp_path)
    agent = load(f"frozen:{tmp_path}")
    assert isinstance(agent, Frozen)
    assert describe_policy(agent) == "greedy"
    assert describe_policy(load(f"frozen:{tmp_path}", greedy=False)) == "sampled"
    agent.reset(3)
    first = agent.act(some_latents(3))
    for seed in range(1, 4):
        assert agent.act(some_latents(3, seed)).tolist() == first.tolist()
    with pytest.raises(AgentError, match="no agent 'nobody'"):
        load("frozen:nobody")


def test_it_plays_in_a_dream(tiny_world: World) -> None:
    returns = play_dream(
        tiny_world, load("frozen:noop", world=tiny_world), episodes=3, first_seed=0, batch=2
    )
    assert (
        returns.tolist()
        == play_dream(
            tiny_world, load("noop", world=tiny_world), episodes=3, first_seed=0, batch=2
        ).tolist()
    )
