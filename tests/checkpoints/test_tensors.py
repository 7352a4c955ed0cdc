"""Tensor files are loaded whole or not at all, and written whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from magi_world.checkpoints import tensors
from magi_world.checkpoints.tensors import as_bfloat16, load_module, read_tensors, write_tensors
from magi_world.errors import CheckpointError

Tensors = dict[str, Tensor]


def make_module(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))
    module.register_buffer("count", torch.tensor(seed))
    return module


def snapshot(module: nn.Module) -> Tensors:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_a_round_trip_is_exact(tmp_path: Path) -> None:
    module, other = make_module(1), make_module(2)
    path = tmp_path / "deep" / "part.safetensors"
    write_tensors(snapshot(module), path, {"part": "test"})
    load_module(other, path)
    assert same(snapshot(other), snapshot(module))
    assert [file.name for file in path.parent.iterdir()] == ["part.safetensors"]


def test_worlds_round_floating_tensors_to_bfloat16(tmp_path: Path) -> None:
    module, other = make_module(1), make_module(2)
    rounded = as_bfloat16(module)
    assert rounded["0.weight"].dtype == torch.bfloat16 and rounded["count"].dtype == torch.int64
    write_tensors(rounded, tmp_path / "a", {})
    load_module(other, tmp_path / "a")
    weight = other.state_dict()["0.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, module.state_dict()["0.weight"].bfloat16().float())


def test_a_prefix_chooses_tensors(tmp_path: Path) -> None:
    one, two = make_module(1), make_module(2)
    both = {f"one.{k}": v for k, v in snapshot(one).items()}
    both |= {f"two.{k}": v for k, v in snapshot(two).items()}
    write_tensors(both, tmp_path / "both", {})
    module = make_module(3)
    load_module(module, tmp_path / "both", prefix="two.")
    assert same(snapshot(module), snapshot(two))
    with pytest.raises(CheckpointError, match="4 tensors are missing|tensors are missing"):
        load_module(module, tmp_path / "both", prefix="three.")


def drop(t: Tensors) -> None:
    del t["1.weight"]


def add(t: Tensors) -> None:
    t["2.bias"] = torch.zeros(2)


def reshape(t: Tensors) -> None:
    t["1.weight"] = t["1.weight"].T.contiguous()


def nan(t: Tensors) -> None:
    t["1.weight"][1, 2] = torch.nan


def infinite(t: Tensors) -> None:
    t["1.weight"] = t["1.weight"].bfloat16()
    t["1.weight"][0, 0] = -torch.inf


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop, "1 tensors are missing: 1.weight"),
        (add, "1 tensors are unknown: 2.bias"),
        (reshape, r"1.weight has shape \(4, 2\), expected \(2, 4\)"),
        (nan, "1.weight holds NaN or infinity"),
        (infinite, "1.weight holds NaN or infinity"),
    ],
)
def test_nothing_is_half_loaded(
    tmp_path: Path, spoil: Callable[[Tensors], None], words: str
) -> None:
    path = tmp_path / "spoilt.safetensors"
    spoilt = snapshot(make_module(1))
    spoil(spoilt)
    write_tensors(spoilt, path, {})
    module = make_module(2)
    before = snapshot(module)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_module(module, path)
    assert str(path) in str(caught.value)
    assert same(snapshot(module), before)


def test_many_offenders_are_counted_not_listed(tmp_path: Path) -> None:
    spoilt = {f"extra.{i}": torch.zeros(1) for i in range(20)} | snapshot(make_module(1))
    write_tensors(spoilt, tmp_path / "a", {})
    with pytest.raises(CheckpointError, match="20 tensors are unknown: .* and 16 more"):
        load_module(make_module(), tmp_path / "a")


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "short.safetensors"
    write_tensors(snapshot(make_module(1)), path, {})
    path.write_bytes(path.read_bytes()[:keep])
    module = make_module(2)
    before = snapshot(module)
    with pytest.raises(CheckpointError, match="short.safetensors cannot be read as safetensors"):
        load_module(module, path)
    assert same(snapshot(module), before)


def test_a_file_of_another_kind_is_named(tmp_path: Path) -> None:
    torch.save(snapshot(make_module()), tmp_path / "pickle.safetensors")
    with pytest.raises(CheckpointError, match="pickle.safetensors cannot be read"):
        read_tensors(tmp_path / "pickle.safetensors")


@pytest.mark.parametrize("name", ["absent", "."])
def test_an_absent_file_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match="there is no weight file"):
        read_tensors(tmp_path / name)


def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    old = snapshot(make_module(1))
    write_tensors(old, path, {})

    def half(content: Tensors, file: Path, metadata: dict[str, str]) -> None:
        Path(file).write_bytes(b"half of a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(tensors, "save_file", half)
    with pytest.raises(KeyboardInterrupt):
        write_tensors(snapshot(make_module(2)), path, {})
    assert same(read_tensors(path), old)
    monkeypatch.undo()
    write_tensors(snapshot(make_module(2)), path, {})  # what was left over is no obstacle
    assert same(read_tensors(path), snapshot(make_module(2)))
    assert os.listdir(tmp_path) == ["weights.safetensors"]


def test_shared_and_strided_tensors_can_be_written(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    write_tensors({"a": base.T, "b": base[:, 1:]}, tmp_path / "a", {})
    again = read_tensors(tmp_path / "a")
    assert torch.equal(again["a"], base.T) and torch.equal(again["b"], base[:, 1:])
