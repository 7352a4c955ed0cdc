"""Saved states on disk."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from magi_world.checkpoints.state_file import FORMAT, load_state, save_state
from magi_world.errors import CheckpointError

NAMES = st.text("abcdef_", min_size=1, max_size=5)
VALUES = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.floats(-9, 9)
TENSORS = st.integers(0, 4).map(lambda n: torch.arange(n, dtype=torch.int64))
STATES = st.recursive(
    st.dictionaries(NAMES, VALUES | TENSORS, min_size=1, max_size=4),
    lambda children: st.dictionaries(NAMES, children, min_size=1, max_size=3),
    max_leaves=4,
)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return type(one) is type(other) and one == other


@settings(max_examples=40)
@given(state=STATES)
def test_what_is_written_is_read(state: dict[str, Any], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("states") / "here.safetensors"
    save_state(state, path)
    assert same(load_state(path), state)
    assert [file.name for file in path.parent.iterdir()] == ["here.safetensors"]


def test_tensors_may_share_memory(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    save_state({"whole": whole, "part": whole[2:4]}, tmp_path / "s")
    assert load_state(tmp_path / "s")["part"].tolist() == [2.0, 3.0]


@pytest.mark.parametrize("state", [{"a": object()}, {"a.b": 1}, {"a": {3: 1}}, None])
def test_what_cannot_be_written(state: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_state(state, tmp_path / "s")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_place_to_write_to(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        save_state({"x": torch.zeros(1)}, folder)
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({}, "holds no saved state"),
        ({"part": "dit"}, "holds no saved state, but dit"),
        ({"format": FORMAT, "version": "0", "values": "{}"}, "version 0 .* reads version 1"),
        ({"format": FORMAT, "version": "9", "values": "{}"}, "version 9"),
        ({"format": FORMAT, "version": "1"}, "lacks the values"),
        ({"format": FORMAT, "version": "1", "values": "{"}, "lacks the values"),
        ({"format": FORMAT, "version": "1", "values": "[1]"}, "is damaged: .* no names"),
        ({"format": FORMAT, "version": "1", "values": '{"x": 1, "x.y": 2}'}, "'x.y' lies inside"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, header: dict[str, str], words: str) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "s", header)
    with pytest.raises(CheckpointError, match=words):
        load_state(tmp_path / "s")


def test_no_file_and_a_cut_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weight file"):
        load_state(tmp_path / "s")
    save_state({"x": torch.zeros(99)}, tmp_path / "s")
    (tmp_path / "s").write_bytes((tmp_path / "s").read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_state(tmp_path / "s")
