"""A training that goes on: what it keeps, what it may change, what it refuses."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from magi_world.agents.checkpoint import CHECKPOINT, resumed_settings
from magi_world.agents.files import describe
from magi_world.agents.ppo import Args, train
from magi_world.agents.ppo_state import Training
from magi_world.errors import AgentError
from tests.agents.fork import SMALL, fork_world


def trained(folder: Path) -> dict[str, Any]:
    described: dict[str, Any] = json.loads((folder / "agent.json").read_text())
    return described["trained"]  # type: ignore[no-any-return]


def training(world: Any, args: Args) -> Training:
    network = {"history": args.history, "channels": list(args.channels), "hidden": args.hidden}
    description = describe(world, "ppo", "dream") | network | {"greedy": args.greedy}
    return Training(description, args, torch.device("cpu"))


def test_steps_and_time_add_up(tmp_path: Path) -> None:
    args = Args(**(SMALL | {"total_steps": 256}))
    train(fork_world(), args, tmp_path, show=False)
    first = trained(tmp_path)
    world = fork_world()
    more = dataclasses.replace(args, total_steps=512)
    train(world, more, tmp_path, resume=True, show=False)
    second = trained(tmp_path)
    assert (first["steps"], second["steps"]) == (256, 512)
    assert (first["updates"], second["updates"]) == (2, 4)
    assert second["seconds"] >= first["seconds"]  # rounded to tenths
    assert second["episodes"] > first["episodes"]
    # no dream is dreamed twice
    assert world.seeds == [100_000 + first["episodes"] + i for i in range(8)]


def test_what_is_spent_is_not_spent_again(tmp_path: Path) -> None:
    args = Args(**(SMALL | {"total_steps": None, "minutes": 1e-6}))
    train(fork_world(), args, tmp_path, show=False)
    before = (tmp_path / "agent.safetensors").read_bytes()
    train(fork_world(), args, tmp_path, resume=True, show=False)
    assert trained(tmp_path)["updates"] == 1
    assert (tmp_path / "agent.safetensors").read_bytes() == before


def test_a_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    args = Args(**SMALL)
    train(fork_world(), args, tmp_path, show=False)
    one, other = training(fork_world(), args), training(fork_world(), args)
    one.resume(tmp_path)
    one.save(tmp_path / "again")
    other.resume(tmp_path / "again")
    assert torch.equal(one.generator.get_state(), other.generator.get_state())
    fresh = torch.Generator().manual_seed(args.seed)
    assert not torch.equal(one.generator.get_state(), fresh.get_state())
    for a, b in (
        (one.network.state_dict(), other.network.state_dict()),
        (one.average.state_dict(), other.average.state_dict()),
        *zip(
            one.optimizer.state_dict()["state"].values(),
            other.optimizer.state_dict()["state"].values(),
            strict=True,
        ),
    ):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert one.optimizer.state_dict()["state"][0]["step"] == 4 * 3 * 2  # updates, epochs, parts
    assert one.trained == other.trained


def test_resumed_trainings_repeat(tmp_path: Path) -> None:
    """From one checkpoint the same agent comes twice."""
    args = Args(**(SMALL | {"total_steps": 256}))
    files = []
    for name in "ab":
        train(fork_world(), args, tmp_path / name, show=False)
        longer = dataclasses.replace(args, total_steps=512)
        train(fork_world(), longer, tmp_path / name, resume=True, show=False)
        files.append((tmp_path / name / "agent.safetensors").read_bytes())
    assert files[0] == files[1]


def test_settings_are_read_back(tmp_path: Path) -> None:
    args = Args(**SMALL, signal_weights={"damage": -1.0})
    train(fork_world(), args, tmp_path, show=False)
    assert Args(**resumed_settings(tmp_path, "ppo")) == args
    with pytest.raises(AgentError, match="of kind 'ppo', not 'linear'"):
        resumed_settings(tmp_path, "linear")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 0.9}, "gamma 0.95, not 0.9"),
        ({"hidden": 8}, "hidden 16, not 8"),
        ({"seed": 2}, "seed 1, not 2"),
    ],
)
def test_another_training_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    args = Args(**SMALL)
    train(fork_world(), args, tmp_path, show=False)
    with pytest.raises(AgentError, match=message):
        changed = dataclasses.replace(args, **changes)
        train(fork_world(), changed, tmp_path, resume=True, show=False)


def test_another_world_is_refused(tmp_path: Path) -> None:
    train(fork_world(), Args(**SMALL), tmp_path, show=False)
    world = fork_world()
    world.name = "wall"
    with pytest.raises(AgentError, match="world 'fork', not 'wall'"):
        train(world, Args(**SMALL), tmp_path, resume=True, show=False)


@pytest.mark.parametrize("damage", ["missing", "truncated", "agent"])
def test_a_folder_without_a_checkpoint_is_named(damage: str, tmp_path: Path) -> None:
    if damage != "missing":
        train(fork_world(), Args(**SMALL), tmp_path, show=False)
    path = tmp_path / CHECKPOINT
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    if damage == "agent":  # weights, but no checkpoint
        path.write_bytes((tmp_path / "agent.safetensors").read_bytes())
    with pytest.raises(AgentError, match="no training to go on with"):
        train(fork_world(), Args(**SMALL), tmp_path, resume=True, show=False)
