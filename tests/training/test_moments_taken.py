"""Trainings that take the moments which were dreamed for another one."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from magi_world.agents.fitted_q import Args, train
from magi_world.checkpoints.tensors import read_tensors
from magi_world.cli import main
from magi_world.errors import AgentError
from magi_world.training.bank import encoded_store
from magi_world.training.store import Store
from magi_world.world import World, load
from tests.training.toy import SMALL_FITTED_Q as SMALL
from tests.training.toy import record


def test_moments_of_another_training_are_taken(
    world: World, store: Store, tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another seed learns from the same dreams; dreams of anything else are refused."""
    one = tmp_path / "one"
    train(world, Args(**SMALL), one, store=store, show=False)
    words = ["train-agent", "--world", str(trained / "world"), "--starts-from", str(trained)]
    words += ["--kind", "fitted-q", "--json", "--set=channels=[4,4]", "--set=hidden=8"]
    words += ['--set=signal_weights={"damage": -1.0}', "--set=updates=6", "--set=batch_size=16"]
    taking = [*words, "--set=moments=60", "--moments", str(one)]
    two = tmp_path / "two"
    assert main([*taking, "--seed", "2", "--out", str(two)]) == 0
    parts = sorted((one / "moments").iterdir())
    assert [p.name for p in parts] == [p.name for p in sorted((two / "moments").iterdir())]
    for path in parts:
        assert path.read_bytes() == (two / "moments" / path.name).read_bytes()
    assert (one / "agent.safetensors").read_bytes() != (two / "agent.safetensors").read_bytes()
    train(world, Args(**SMALL), tmp_path / "same", store=store, moments=one, show=False)
    again = (tmp_path / "same" / "agent.safetensors").read_bytes()
    assert again == (one / "agent.safetensors").read_bytes()
    for wrong, message in (
        (["--set=hold=2"], "moments of an agent with hold 1, not 2"),
        (["--temperature", "0.5"], "moments of an agent with temperature 1.0, not 0.5"),
        (["--moments", str(trained)], "does not hold an agent"),
        (["--resume"], "when it begins"),
    ):
        capsys.readouterr()
        assert main([*taking, *wrong, "--out", str(tmp_path / "no")]) == 2
        assert message in capsys.readouterr().err
    fewer = dataclasses.replace(store, valid=store.valid[:-1])
    with pytest.raises(AgentError, match="drawn_from"):
        train(world, Args(**SMALL), tmp_path / "no", store=fewer, moments=one, show=False)
    for path in parts:
        path.unlink()
    with pytest.raises(AgentError, match="has no moments"):
        train(world, Args(**SMALL), tmp_path / "no", store=store, moments=one, show=False)
    assert not (tmp_path / "no").exists()


def rows(folder: Path, name: str) -> torch.Tensor:
    return read_tensors(folder / "moments" / name)["row"]


def test_more_data_needs_only_its_own_dreams(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was dreamed of the first datasets is kept; new dreams begin in those beyond them."""
    other = record(tmp_path / "other", range(40, 60), name="toy-other-v0")
    words = ["train-agent", "--world", str(trained / "world"), "--kind", "fitted-q", "--json"]
    words += ["--set=updates=2", "--set=batch_size=16", "--set=history=2"]
    first, both = tmp_path / "first", tmp_path / "both"
    assert main([*words, "--set=moments=40", "--out", str(first), "--data", str(data)]) == 0
    assert [p.name for p in (first / "moments").iterdir()] == ["0000.safetensors"]
    count = len(rows(first, "0000.safetensors"))
    new = [*words, f"--set=moments={count + 40}", "--data", str(data), "--data", str(other)]
    capsys.readouterr()
    assert main([*new, "--moments", str(first), "--out", str(both)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert torch.equal(rows(both, "0000.safetensors"), rows(first, "0000.safetensors"))
    before = len(encoded_store(load(trained / "world"), first).valid)
    fresh = rows(both, "0001.safetensors")
    assert fresh.min() >= before > rows(first, "0000.safetensors").max()
    said = json.loads((both / "agent.json").read_text())
    assert said["taken"] == {"parts": 1, "chunks": before}
    assert told["steps"] == 3 * (count + len(fresh))

    more = [*new, f"--set=moments={count + len(fresh) + 40}", "--moments", str(first)]
    third = tmp_path / "third"
    assert main([*more, "--out", str(third)]) == 0
    assert torch.equal(rows(third, "0001.safetensors"), fresh)
    assert rows(third, "0002.safetensors").min() < before  # what is missing: all data again
    taking, fourth = ["--moments", str(both), "--seed", "2"], tmp_path / "fourth"
    assert main([*new, *taking, "--out", str(fourth)]) == 0
    assert json.loads((fourth / "agent.json").read_text())["taken"] == said["taken"]
    assert main([*new[:-2], *taking, "--out", str(tmp_path / "no")]) == 2
    assert "moments of an agent with drawn_from" in capsys.readouterr().err
    (both / "moments" / "0000.safetensors").unlink()
    resumed = ["--set=updates=4", f"--set=moments={count + 40}", "--out", str(both), "--resume"]
    assert main([*words, *resumed]) == 2
    assert "take it from where it was dreamed" in capsys.readouterr().err
