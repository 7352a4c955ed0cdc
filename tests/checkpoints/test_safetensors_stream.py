"""Streams of tensors: what the safetensors library writes is read, and the other way round."""

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from magi_world.checkpoints.safetensors_stream import (
    DTYPES,
    Source,
    read_header,
    stream_tensors,
    write_stream,
)
from magi_world.errors import CheckpointError

SUFFIXES = ["", ".zst"]


def some_tensors() -> dict[str, Tensor]:
    return {
        "a.weight": torch.randn(3, 5),
        "b": torch.randn(7).to(torch.bfloat16),
        "c": torch.randn(1, 4, 2).to(torch.float8_e4m3fn),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and torch.equal(one[name].float(), other[name].float())
        for name in one
    )


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    write_stream(path, [Source.of(name, t) for name, t in tensors.items()], {"format": "pt"})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_round_trip_is_exact(suffix: str, tmp_path: Path) -> None:
    tensors, path = some_tensors(), tmp_path / f"a.safetensors{suffix}"
    write(path, tensors)
    assert same(dict(stream_tensors(path)), tensors)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert {e.name: e.shape for e in read_header(path)} == {
        name: tuple(t.shape) for name, t in tensors.items()
    }


def test_the_library_reads_what_is_written_and_the_other_way_round(tmp_path: Path) -> None:
    tensors = some_tensors()
    write(tmp_path / "ours", tensors)
    assert same(load_file(tmp_path / "ours"), tensors)
    save_file(tensors, tmp_path / "theirs")
    assert same(dict(stream_tensors(tmp_path / "theirs")), tensors)


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=5),
    dtype=st.sampled_from(sorted(DTYPES)),
)
def test_any_shapes_and_dtypes(
    shapes: list[list[int]], dtype: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("s") / "a"
    tensors = {f"t{i}": torch.randn(shape).to(DTYPES[dtype]) for i, shape in enumerate(shapes)}
    write(path, tensors)
    assert same(dict(stream_tensors(path)), tensors)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_truncation_is_found(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.safetensors{suffix}"
    write(path, {"a": torch.randn(4, 4), "b": torch.randn(3)})
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=path.name):
            dict(stream_tensors(path))
    path.write_bytes(whole + b"12345678")
    if not suffix:
        with pytest.raises(CheckpointError, match="its header says"):
            read_header(path)


@given(st.binary(max_size=200))
def test_noise_is_no_file(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.safetensors", "a.safetensors.zst"):
            path = Path(folder) / name
            path.write_bytes(data)
            with pytest.raises(CheckpointError):
                dict(stream_tensors(path))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
        {"dtype": "F32", "shape": [1]},
        3,
    ],
)
def test_a_damaged_header_is_named(entry: object, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    text = json.dumps({"a": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    with pytest.raises(CheckpointError, match="damaged safetensors header"):
        read_header(path)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"

    def fail() -> Tensor:
        raise RuntimeError("no values")

    with pytest.raises(RuntimeError, match="no values"):
        write_stream(path, [Source("a", torch.float32, (2,), fail)], {})
    wrong = Source("a", torch.float32, (2,), lambda: torch.zeros(3))
    with pytest.raises(ValueError, match="announced with another dtype or shape"):
        write_stream(path, [wrong], {})
    assert list(tmp_path.iterdir()) == []


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weight file"):
        read_header(tmp_path / "absent")
