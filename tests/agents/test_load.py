"""Agents by name: baselines, the agent beside a world's weights, folders, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from magi_world import agents, worlds
from magi_world.agents.evaluation import load_agents
from magi_world.agents.ppo_agent import PPOAgent, build_network
from magi_world.agents.random_agent import NoOp, Random, Sticky, Sweep
from magi_world.errors import AgentError

PROMPTS = ["stand still", "strafe left", "strafe right"]


def save_agent(folder: Path, **changes: Any) -> None:
    description = {
        "kind": "ppo", "world": "tiny", "prompts": PROMPTS, "latent_shape": [16, 1, 4, 4],
        "history": 2, "channels": [4, 4], "hidden": 8, "greedy": True,
    } | changes  # fmt: skip
    network = build_network(description).initialise(torch.Generator().manual_seed(0))
    PPOAgent(network, description).save(folder)


def world_in(folder: Path | None = None, *, sweep: int | None = 24, name: str = "tiny") -> Any:
    card: dict[str, Any] = {"name": name, "prompts": PROMPTS}
    if sweep is not None:
        card["sweep_period"] = sweep
    config = SimpleNamespace(latent_shape=(16, 1, 4, 4))
    return SimpleNamespace(
        name=name, card=card, config=config, folder=folder, device=torch.device("cpu")
    )


def test_baselines_read_the_card() -> None:
    world = world_in()
    found = {name: agents.load(name, world=world) for name in agents.BASELINES}
    assert isinstance(found["noop"], NoOp)
    assert isinstance(found["random"], Random)
    assert isinstance(found["sticky"], Sticky)
    assert not isinstance(found["sticky"], Random)
    sweep = found["sweep"]
    assert isinstance(sweep, Sweep)
    assert sweep.period == 24
    for agent in found.values():
        agent.reset(2, seed=0)
        assert agent.act(torch.zeros(2, 16, 1, 4, 4)).shape == (2,)
        assert agent.observations == "latent"


def test_baselines_need_a_world() -> None:
    with pytest.raises(AgentError, match="world="):
        agents.load("random")


def test_sweep_needs_a_measured_period() -> None:
    with pytest.raises(AgentError, match="magi-world evaluate tiny"):
        agents.load("sweep", world=world_in(sweep=None))


def test_folder(tmp_path: Path) -> None:
    save_agent(tmp_path / "mine")
    agent = agents.load(tmp_path / "mine", world=world_in(), greedy=False)
    assert isinstance(agent, PPOAgent)
    assert agent.policy == "sampled"
    assert agents.load(str(tmp_path / "mine")).observations == "latent"


def test_agent_beside_a_world(tmp_path: Path) -> None:
    world = world_in(tmp_path)
    assert not agents.has_agent(world)
    assert not agents.has_agent(world_in(None))
    assert list(load_agents(world)) == list(agents.BASELINES)
    with pytest.raises(AgentError, match="no agent 'tiny'"):
        agents.load("tiny", world=world)
    save_agent(tmp_path / "agent")
    assert agents.has_agent(world)
    assert isinstance(agents.load("tiny", world=world), PPOAgent)
    assert isinstance(agents.load(tmp_path, world=world), PPOAgent)  # the world's folder will do
    assert list(load_agents(world)) == [*agents.BASELINES, "tiny"]
    assert list(load_agents(world, ["sweep"])) == ["sweep"]


def test_name_of_an_embedded_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_agent(tmp_path / "agent")
    monkeypatch.setattr(worlds, "available", lambda: ["tiny"])
    monkeypatch.setattr(worlds, "folder", lambda name: tmp_path if name == "tiny" else None)
    assert isinstance(agents.load("tiny"), PPOAgent)
    with pytest.raises(AgentError, match=r"nobody.*noop, random, sticky, sweep.*tiny"):
        agents.load("nobody")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ["stay", "up", "down"]}, "prompts"),
        ({"latent_shape": [16, 1, 8, 8]}, "latents"),
    ],
)
def test_agent_of_another_world_is_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_agent(tmp_path, **changes)
    agents.load(tmp_path)
    with pytest.raises(AgentError, match=message):
        agents.load(tmp_path, world=world_in())
