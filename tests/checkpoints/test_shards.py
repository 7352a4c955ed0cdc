"""Shards: found, checked before they are read, and streamed so that the weights exist once."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from magi_world.checkpoints.safetensors_stream import Source
from magi_world.checkpoints.shards import (
    INDEX,
    SINGLE,
    all_finite,
    load_shards,
    open_shards,
    write_shards,
)
from magi_world.errors import CheckpointError
from magi_world.evaluation.peak_memory import peak_bytes

CPU = torch.device("cpu")


def make_module(width: int = 8, layers: int = 4) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def write(folder: Path, module: nn.Module, **options: object) -> list[Path]:
    sources = [Source.of(name, tensor) for name, tensor in module.state_dict().items()]
    return write_shards(sources, folder, **options)  # type: ignore[arg-type]


def empty() -> nn.Module:
    with torch.device("meta"):
        return make_module()


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("shard_bytes", "files"), [(10**9, 1), (300, 4), (1, 8)])
def test_one_file_or_several(shard_bytes: int, files: int, compress: bool, tmp_path: Path) -> None:
    module, loaded = make_module(), empty()
    written = write(tmp_path, module, shard_bytes=shard_bytes, compress=compress)
    assert len(written) == files
    assert (tmp_path / INDEX).is_file() == (files > 1)
    told: list[int] = []
    load_shards(loaded, open_shards(tmp_path), device=CPU, progress=told.append)
    assert same(module, loaded)
    assert sum(told) == open_shards(tmp_path).nbytes == 4 * (8 * 8 + 8) * 4


def test_some_shards_may_be_compressed(tmp_path: Path) -> None:
    module, loaded = make_module(), empty()
    write(tmp_path / "plain", module, shard_bytes=300)
    write(tmp_path / "packed", module, shard_bytes=300, compress=True)
    for number in (2, 3):
        name = f"model-0000{number}-of-00004.safetensors"
        (tmp_path / "plain" / name).unlink()
        os.rename(tmp_path / "packed" / f"{name}.zst", tmp_path / "plain" / f"{name}.zst")
    load_shards(loaded, open_shards(tmp_path / "plain"), device=CPU)
    assert same(module, loaded)


def test_tensors_arrive_in_their_final_dtype(tmp_path: Path) -> None:
    write(tmp_path, make_module())
    loaded = empty()

    def dtype_of(name: str, declared: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if name.startswith("1.") else declared

    load_shards(loaded, open_shards(tmp_path), device=CPU, dtype_of=dtype_of)
    assert {name: t.dtype for name, t in loaded.state_dict().items() if "weight" in name} == {
        "0.weight": torch.float32, "1.weight": torch.bfloat16,
        "2.weight": torch.float32, "3.weight": torch.float32,
    }  # fmt: skip


@pytest.mark.parametrize("compress", [False, True])
def test_the_weights_exist_once(compress: bool, tmp_path: Path) -> None:
    module = make_module(width=256, layers=20)
    write(tmp_path, module, shard_bytes=2_000_000, compress=compress)
    size, largest = open_shards(tmp_path).nbytes, 256 * 256 * 4

    def load() -> nn.Module:
        with torch.device("meta"):
            loaded = make_module(width=256, layers=20)
        load_shards(loaded, open_shards(tmp_path), device=CPU)
        return loaded

    # one tensor more for what checks it for NaN
    assert size <= peak_bytes(load) <= size + 2 * largest


def set_index(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    document = json.loads((folder / INDEX).read_text())
    change(document["weight_map"])
    (folder / INDEX).write_text(json.dumps(document))


FIRST, SECOND = (f"model-0000{n}-of-00004.safetensors" for n in (1, 2))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / SECOND).unlink(), f"the shard .*{SECOND} is absent"),
        (lambda f: (f / SECOND).write_bytes((f / SECOND).read_bytes()[:-5]), f"{SECOND} has"),
        (lambda f: (f / SECOND).write_bytes(b"noise"), f"{SECOND} is truncated"),
        (lambda f: (f / SECOND).write_bytes((f / FIRST).read_bytes()), "another shard too"),
        (lambda f: (f / INDEX).write_text("{"), "is no JSON"),
        (lambda f: (f / INDEX).write_text('{"weight_map": []}'), "has no weight_map"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"a": "../b"}}'), "has no weight_map"),
        (lambda f: set_index(f, lambda m: m.update({"9.bias": FIRST})), "no shard holds 9.bias"),
        (lambda f: set_index(f, lambda m: m.update({"0.bias": SECOND})), "places in"),
        (lambda f: [p.unlink() for p in f.iterdir()], f"neither {SINGLE} nor {INDEX}"),
    ],
)
def test_what_is_damaged_is_named_before_anything_is_read(
    damage: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    write(tmp_path, make_module(), shard_bytes=300)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=words):
        open_shards(tmp_path)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: make_module(layers=5), "2 tensors .* are missing: 4.bias, 4.weight"),
        (lambda: make_module(layers=3), "2 tensors are unknown .*: 3.bias, 3.weight"),
        (lambda: make_module(width=9), r"0.weight has shape \(8, 8\), .* asks for \(9, 9\)"),
    ],
)
def test_a_checkpoint_of_another_configuration(
    other: Callable[[], nn.Module], words: str, tmp_path: Path
) -> None:
    write(tmp_path, make_module())
    with pytest.raises(CheckpointError, match=words):
        load_shards(other(), open_shards(tmp_path), device=CPU)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(value: float, tmp_path: Path) -> None:
    module = make_module()
    with torch.no_grad():
        module.get_parameter("2.weight")[3, 4] = value
    write(tmp_path, module)
    with pytest.raises(CheckpointError, match="2.weight holds NaN or infinity"):
        load_shards(empty(), open_shards(tmp_path), device=CPU)


def test_float8_is_finite_unless_it_is_nan() -> None:
    bits = torch.arange(256, dtype=torch.uint8)
    for value in bits:
        tensor = value.view(1).view(torch.float8_e4m3fn)
        assert all_finite(tensor) == bool(tensor.float().isfinite().all())
    assert all_finite(torch.tensor([1, 2]))
