"""The linear agent: what it reads, how it learns, its files."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magi_world import agents
from magi_world.agents.linear import History, LinearAgent, build_map, features, num_features
from magi_world.agents.linear_training import Args, Population, train
from magi_world.errors import AgentError, ConfigError, MissingPackage, NotReset
from magi_world.world import World
from tests.agents.fork import PROMPTS, SHAPE, Fork, fork_world, some_latents
from tests.tiny_duel import make_tiny_duel

SMALL: dict[str, Any] = {
    "generations": 3, "population": 6, "episodes": 2, "horizon": 5, "history": 2, "pool": (1, 2),
    "starts": "opening",
}  # fmt: skip


def new_agent() -> LinearAgent:
    description = {
        "kind": "linear", "world": "fork", "prompts": PROMPTS, "latent_shape": list(SHAPE),
        "history": 2, "pool": [1, 2],
    }  # fmt: skip
    weights = build_map(description)
    generator = torch.Generator().manual_seed(0)
    for parameter in weights.parameters():
        torch.nn.init.normal_(parameter, generator=generator)
    return LinearAgent(weights, description)


def test_features_are_means_of_cells() -> None:
    latents = torch.zeros(1, 2, 1, 4, 4)
    latents[0, 0, 0, :, :2] = 3.0
    latents[0, 1, 0, 0, 3] = 8.0
    assert features(latents, (1, 2)).tolist() == [[3.0, 0.0, 0.0, 1.0]]
    assert features(latents, (4, 4)).flatten().tolist() == latents.flatten().tolist()


def test_history_begins_full_and_slides() -> None:
    history = History(2, (1, 1))
    chunks = [torch.full((1, 1, 1, 2, 2), float(i)) for i in range(3)]
    assert [history.add(chunk).tolist() for chunk in chunks] == [[[0, 0]], [[0, 1]], [[1, 2]]]


def test_default_size_is_that_of_2018() -> None:
    """Ha and Schmidhuber's controller of this game has 1,088 parameters."""
    args = Args()
    inputs = num_features((16, 1, 8, 8), args.history, args.pool)
    assert 1_000 <= (inputs + 1) * len(PROMPTS) <= 1_200


def test_learns_to_take_the_open_side(tmp_path: Path) -> None:
    args = Args(
        **(SMALL | {"generations": 25, "population": 16, "episodes": 4, "horizon": 10}), seed=3
    )
    agent = train(fork_world(), args, tmp_path, show=False)
    rollout = Fork(64, range(64), 1.0)
    agent.reset(64)
    latents = rollout.reset().latents
    right = 0
    for _ in range(5):
        actions = agent.act(latents)
        right += int((torch.from_numpy(actions) == rollout.open_B).sum())
        latents = rollout.step([PROMPTS[action] for action in actions]).latents
    assert right > 0.9 * 5 * 64


@pytest.mark.parametrize("expected", [True, False])
def test_members_are_scored_as_they_would_play(expected: bool) -> None:
    """One that always goes left, one that never moves: alike in luck, scored by survival."""
    args = Args(**(SMALL | {"population": 4, "episodes": 3}), expected_termination=expected)
    world = fork_world(danger=0.5)
    population = Population(world, args)
    numbers = (num_features(SHAPE, 2, (1, 2)) + 1) * 3
    members = np.zeros((4, numbers))
    members[:2, numbers // 3 * 2 - 1] = 1.0  # the bias of "strafe left"
    scores = population.score(members, generation=0)
    assert scores[0] == scores[1] and scores[2] == scores[3]
    assert scores[0] > scores[2]
    if expected:  # half of those left die with every chunk that is not dodged
        assert scores[2] == pytest.approx(4 * (1 + 0.5 + 0.25 + 0.125 + 0.0625))
    assert population.take_steps() == 5 * 12 or not expected
    assert population.take_steps() == 0
    again = population.score(members, generation=0)
    assert again.tolist() == scores.tolist()
    assert population.score(members, generation=1)[0] != scores[0]


@pytest.mark.parametrize("separable", [True, False])
def test_training_repeats_and_goes_on_exactly(separable: bool, tmp_path: Path) -> None:
    args = Args(**SMALL, separable=separable)
    state = torch.get_rng_state()
    for name in ("a", "b"):
        train(fork_world(), args, tmp_path / name, show=False)
    first = dataclasses.replace(args, generations=2)
    train(fork_world(), first, tmp_path / "c", show=False)
    train(fork_world(), args, tmp_path / "c", resume=True, show=False)
    train(fork_world(), dataclasses.replace(args, seed=2), tmp_path / "d", show=False)
    assert torch.equal(torch.get_rng_state(), state)
    files = [(tmp_path / name / "agent.safetensors").read_bytes() for name in "abcd"]
    assert files[0] == files[1] == files[2] != files[3]
    described = [json.loads((tmp_path / name / "agent.json").read_text()) for name in "ac"]
    for key in ("steps", "generations", "parameters"):
        assert described[0]["trained"][key] == described[1]["trained"][key]


def test_training_in_a_real_rollout(
    tiny_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = Args(**(SMALL | {"starts": "any", "pool": (1, 8), "horizon": 3, "generations": 2}))
    agent = train(tiny_world, args, tmp_path)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "generation 2, 72 steps" in captured.err
    agent.check_fits(tiny_world)
    loaded = agents.load(tmp_path, world=tiny_world, greedy=False)
    assert isinstance(loaded, LinearAgent)
    described = json.loads((tmp_path / "agent.json").read_text())
    assert described["kind"] == "linear" and described["trained_in"] == "dream"
    assert described["trained"]["steps"] == 2 * 12 * 3
    assert list(tmp_path.glob("*.partial")) == []


def test_minutes_end_the_training(tmp_path: Path) -> None:
    args = Args(**(SMALL | {"generations": None, "minutes": 1e-6}))
    train(fork_world(), args, tmp_path, show=False)
    train(fork_world(), args, tmp_path, resume=True, show=False)
    assert json.loads((tmp_path / "agent.json").read_text())["trained"]["generations"] == 1


def test_another_training_is_refused(tmp_path: Path) -> None:
    args = Args(**SMALL)
    train(fork_world(), args, tmp_path, show=False)
    with pytest.raises(AgentError, match="sigma 0.1, not 0.2"):
        changed = dataclasses.replace(args, sigma=0.2)
        train(fork_world(), changed, tmp_path, resume=True, show=False)
    with pytest.raises(AgentError, match="no training to go on with"):
        train(fork_world(), args, tmp_path / "nothing", resume=True, show=False)


def test_a_world_that_teaches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="no outcome heads"):
        train(fork_world(outcome=False), Args(**SMALL), tmp_path, show=False)
    with pytest.raises(AgentError, match="has players"):
        train(make_tiny_duel(), Args(**SMALL), tmp_path, show=False)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cmaes", None)
    with pytest.raises(MissingPackage, match=r"magi-world\[rl\]"):
        train(fork_world(), Args(**SMALL), tmp_path, show=False)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"generations": None}, "budget"),
        ({"generations": 0}, "generations 0"),
        ({"minutes": 0.0}, "minutes 0.0"),
        ({"population": 3}, "population 3"),
        ({"episodes": 0}, "episodes 0"),
        ({"pool": (0, 8)}, r"pool \(0, 8\)"),
        ({"sigma": 0.0}, "sigma 0.0"),
        ({"starts": "middle"}, "middle"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Args(**wrong)


def test_agent_round_trip(tmp_path: Path) -> None:
    agent = new_agent()
    agent.save(tmp_path)
    again = LinearAgent.load(tmp_path)
    assert again.description == agent.description
    latents = [some_latents(5, seed) for seed in range(4)]
    for one in (agent, again):
        one.reset(5)
    for chunk in latents:
        played = agent.act(chunk)
        assert played.dtype == np.int64
        assert again.act(chunk.numpy()).tolist() == played.tolist()


@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "json", "key", "kind", "list"])
def test_damaged_agents_are_refused(damage: str, tmp_path: Path) -> None:
    agent = new_agent()
    if damage == "shape":
        agent.description["history"] = 3
    if damage == "nan":
        agent.weights.bias[0] = torch.nan
    if damage == "key":
        del agent.description["pool"]
    if damage == "kind":
        agent.description["kind"] = "oracle"
    agent.save(tmp_path)
    if damage == "missing":
        (tmp_path / "agent.safetensors").unlink()
    if damage in ("json", "list"):
        (tmp_path / "agent.json").write_text("{" if damage == "json" else "[]")
    with pytest.raises(AgentError, match=str(tmp_path)):
        agents.load(tmp_path)


def test_agent_refuses_wrong_observations() -> None:
    agent = new_agent()
    with pytest.raises(NotReset):
        agent.act(some_latents(2))
    agent.reset(2)
    with pytest.raises(AgentError, match="expected"):
        agent.act(some_latents(3))
