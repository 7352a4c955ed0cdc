"""The agent that PPO saves: files that round-trip, play that repeats, errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_world.agents.ppo import Args
from magi_world.agents.ppo_agent import (
    PPOAgent,
    build_network,
    flatten_chunk,
    start_history,
)
from magi_world.errors import AgentError, NotReset
from tests.agents.fork import PROMPTS, SHAPE, new_agent, some_latents

# --- the agent on disk and at play -------------------------------------------------------------


def test_agent_round_trip(tmp_path: Path) -> None:
    agent = new_agent()
    agent.save(tmp_path)
    first = PPOAgent.load(tmp_path)
    first.save(tmp_path / "again")
    second = PPOAgent.load(tmp_path / "again")
    for a, b in zip(first.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad
    assert second.description == agent.description


def test_default_size_of_a_doom_agent(tmp_path: Path) -> None:
    """Small enough to be committed many times."""
    args = Args()
    description = {
        "kind": "ppo", "world": "doom", "prompts": PROMPTS, "latent_shape": [16, 1, 8, 8],
        "history": args.history, "channels": list(args.channels), "hidden": args.hidden,
        "greedy": True,
    }  # fmt: skip
    PPOAgent(build_network(description).initialise(torch.Generator()), description).save(tmp_path)
    assert (tmp_path / "agent.safetensors").stat().st_size <= 300_000


@pytest.mark.parametrize("damage", ["missing", "truncated", "shape", "extra", "nan", "json", "key"])
def test_damaged_agents_are_refused(damage: str, tmp_path: Path) -> None:
    agent = new_agent()
    if damage == "shape":
        agent.description["hidden"] = 17
    if damage == "extra":
        agent.network.extra = torch.nn.Linear(1, 1)
    if damage == "nan":
        agent.network.value.bias[0] = torch.nan
    if damage == "key":
        del agent.description["history"]
    agent.save(tmp_path)
    weights, described = tmp_path / "agent.safetensors", tmp_path / "agent.json"
    if damage == "missing":
        weights.unlink()
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-10])
    if damage == "json":
        described.write_text("{")
    with pytest.raises(AgentError, match=str(tmp_path)):
        PPOAgent.load(tmp_path)


def test_numpy_and_torch_observations_agree() -> None:
    agent = new_agent()
    latents = some_latents(5)
    agent.reset(5)
    from_torch = agent.act(latents)
    agent.reset(5)
    from_numpy = agent.act(latents.numpy())
    assert from_torch.dtype == np.int64
    assert from_torch.tolist() == from_numpy.tolist()


@settings(deadline=None)
@given(n=st.integers(1, 4), seed=st.integers(0, 1000))
def test_sampled_rows_repeat_alone(n: int, seed: int) -> None:
    """Row i of a batch plays as row 0 of a batch of one that is seeded with seed + i."""
    agent = new_agent(greedy=False)
    chunks = [some_latents(n, k) for k in range(4)]
    agent.reset(n, seed=seed)
    together = np.stack([agent.act(chunk) for chunk in chunks])
    for row in range(n):
        agent.reset(1, seed=seed + row)
        alone = np.concatenate([agent.act(chunk[row : row + 1]) for chunk in chunks])
        assert alone.tolist() == together[:, row].tolist()


def test_sampling_follows_the_policy() -> None:
    agent = new_agent(greedy=False)
    assert agent.policy == "sampled"
    latents = some_latents(1).expand(6_000, *SHAPE)
    agent.reset(6_000, seed=0)
    counts = np.bincount(agent.act(latents), minlength=3) / 6_000
    stack = start_history(flatten_chunk(latents[:1]), 2)
    probability = agent.network(stack)[0][0].exp().numpy()
    assert counts == pytest.approx(probability, abs=0.03)


def test_greedy_can_be_overridden(tmp_path: Path) -> None:
    new_agent(greedy=True).save(tmp_path)
    assert PPOAgent.load(tmp_path).policy == "greedy"
    assert PPOAgent.load(tmp_path, greedy=False).policy == "sampled"


@settings(max_examples=20, deadline=None)
@given(margin=st.floats(0.0, 3.0), seed=st.integers(0, 100))
def test_a_greedy_agent_keeps_its_action_within_the_margin(margin: float, seed: int) -> None:
    plain, keeping = new_agent(greedy=True), new_agent(greedy=True)
    for agent in (plain, keeping):
        agent.network.policy.weight.mul_(100)  # else a nearly uniform policy never changes its mind
    keeping.description["margin"] = margin
    keeping = PPOAgent(keeping.network, keeping.description)
    seen = []
    plain.network.register_forward_hook(lambda module, inputs, out: seen.append(out[0].double()))
    for agent in (plain, keeping):
        agent.reset(3)
    kept = None
    for latents in some_latents(8 * 3, seed).split(3):
        best, chosen = plain.act(latents), keeping.act(latents)
        logp_BA = seen[-1].numpy()
        if kept is None:
            expected = best
        else:
            ahead = logp_BA.max(-1) - logp_BA[np.arange(3), kept]
            expected = np.where(ahead > margin, best, kept)
        assert np.array_equal(chosen, expected)
        kept = chosen
    keeping.reset(3)
    assert np.array_equal(keeping.act(latents), _first(plain, latents))  # nothing is kept


def _first(agent: PPOAgent, latents: torch.Tensor) -> np.ndarray:
    agent.reset(len(latents))
    return agent.act(latents)


def test_agent_refuses_wrong_observations() -> None:
    agent = new_agent()
    with pytest.raises(NotReset):
        agent.act(some_latents(2))
    agent.reset(2)
    with pytest.raises(AgentError, match="expected"):
        agent.act(some_latents(3))
    with pytest.raises(AgentError, match="expected"):
        agent.act(np.zeros((2, 4, 64, 64, 3), np.uint8))
