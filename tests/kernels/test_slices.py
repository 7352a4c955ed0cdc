"""The mask language: what a slice covers, which lists are refused, how rows are grouped."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from magi_world.kernels.attention import AttnSlices, SliceError
from magi_world.kernels.attention.geometry import Slice
from magi_world.kernels.attention.reference import dense_mask

Q, K = 9, 11  # rows and keys of every mask here


def cells(row: Sequence[int]) -> NDArray[np.int64]:
    """Cover of one slice, 0 or 1 a cell, from the definition with local indices."""
    q_start, q_end, k_start, k_end, kind = row
    n, m = q_end - q_start, k_end - k_start
    cover = np.zeros((Q, K), np.int64)
    for i in range(n):
        for j in range(m):
            left = j >= i if kind in (2, 3) else True
            right = j <= i + (m - n) if kind in (1, 3) else True
            cover[q_start + i, k_start + j] = left and right
    return cover


def ranges(size: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, size), min_size=2, max_size=2).map(sorted)


@st.composite
def slice_rows(draw: st.DrawFn) -> Slice:
    q_start, q_end = draw(ranges(Q))
    k_start, k_end = draw(ranges(K))
    return q_start, q_end, k_start, k_end, draw(st.integers(0, 3))


@given(slice_rows())
def test_one_slice_covers_what_its_type_says(row: Slice) -> None:
    mask = dense_mask(AttnSlices.from_list([row]), Q, K)
    assert np.array_equal(mask.numpy(), cells(row) == 1)


@given(st.lists(slice_rows(), max_size=5))
def test_a_list_is_a_mask_unless_a_cell_is_covered_twice(rows: list[Slice]) -> None:
    count = sum((cells(row) for row in rows), np.zeros((Q, K), np.int64))
    if (count > 1).any():
        with pytest.raises(SliceError, match="cover the same cells"):
            AttnSlices.from_list(rows)
        return
    slices = AttnSlices.from_list(rows)
    assert np.array_equal(dense_mask(slices, Q, K).numpy(), count == 1)
    # segments are disjoint, in order, and every row is covered by the same slices throughout
    edges = [edge for s in slices.segments for edge in (s.start, s.end)]
    assert edges == sorted(edges)
    for segment in slices.segments:
        for row in segment.slices:
            assert row[0] <= segment.start < segment.end <= row[1]


@pytest.mark.parametrize(
    ("kind", "n", "m", "seen"),
    [
        (1, 5, 2, [0, 0, 0, 1, 2]),  # more rows than keys: the first rows see nothing
        (1, 2, 5, [4, 5]),
        (1, 3, 3, [1, 2, 3]),
        (2, 3, 3, [3, 2, 1]),
        (2, 2, 5, [5, 4]),
        (3, 3, 3, [1, 1, 1]),
        (3, 2, 5, [4, 4]),
        (3, 5, 2, [0, 0, 0, 0, 0]),
    ],
)
def test_worked_examples(kind: int, n: int, m: int, seen: list[int]) -> None:
    mask = dense_mask(AttnSlices.from_list([(0, n, 0, m, kind)]), n, m)
    assert mask.sum(1).tolist() == seen


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((0, 1, 0, 1), "has 4 numbers, not 5"),
        ((0, 1, 0, 1, 0, 0), "has 6 numbers, not 5"),
        ((0, 4.9, 0, 4, 0), r"slice \(0, 4.9, 0, 4, 0\): expected five whole numbers"),
        (("a", 1, 0, 1, 0), "expected five whole numbers"),
        (5, "slice 5: expected five whole numbers"),
        ((-1, 1, 0, 1, 0), "0 <= start <= end"),
        ((2, 1, 0, 1, 0), "0 <= start <= end"),
        ((0, 1, 3, 1, 0), "0 <= start <= end"),
        ((0, 1, 0, 1, 4), "type 4 is not one of"),
        ((0, 1, 0, 1, -1), "type -1 is not one of"),
    ],
)
def test_malformed_slices_are_named(row: Any, words: str) -> None:
    with pytest.raises(SliceError, match=words):
        AttnSlices.from_list([row])


def test_numbers_of_other_libraries_are_numbers() -> None:
    rows = np.array([[0, 4, 1, 5, 2]], dtype=np.int32)
    assert AttnSlices.from_list(rows).rows == ((0, 4, 1, 5, 2),)
    assert AttnSlices.from_list([list(torch.tensor([0, 4, 1, 5, 2]))]).rows == ((0, 4, 1, 5, 2),)


def test_a_mask_is_not_made_without_a_check() -> None:
    with pytest.raises(SliceError, match="made by AttnSlices.from_list"):
        AttnSlices(((0, 4, 0, 4, 0),))


def test_keys_stay_within_one_block() -> None:
    AttnSlices.from_list([(0, 2, 8, 16, 0), (2, 4, 1, 3, 0), (2, 4, 5, 8, 0)], key_block=8)
    with pytest.raises(SliceError, match="crosses a border of key blocks of 8"):
        AttnSlices.from_list([(0, 2, 7, 9, 0)], key_block=8)
    with pytest.raises(SliceError, match=r"rows 1:2 see the key blocks \[0, 1\]"):
        AttnSlices.from_list([(0, 2, 0, 4, 0), (1, 3, 8, 9, 0)], key_block=8)


@pytest.mark.parametrize("key_block", [0, -4])
def test_a_key_block_is_positive(key_block: int) -> None:
    with pytest.raises(SliceError, match="key_block"):
        AttnSlices.from_list([(0, 2, 0, 4, 0)], key_block=key_block)


def test_extent_holds_the_mask() -> None:
    assert AttnSlices.from_list([]).extent() == (0, 0)
    assert AttnSlices.from_list([(2, 4, 1, 6, 0), (0, 1, 0, 9, 2)]).extent() == (4, 9)


@given(st.integers(0, 4), st.integers(1, 4), st.integers(1, 4))
def test_repeated_clips_attend_to_themselves(count: int, queries: int, keys: int) -> None:
    slices = AttnSlices.repeated(count, queries, keys)
    mask = dense_mask(slices, count * queries, count * keys)
    blocks = np.kron(np.eye(count, dtype=bool), np.ones((queries, keys), dtype=bool))
    assert np.array_equal(mask.numpy(), blocks)
    assert AttnSlices.repeated(count, queries, keys) is slices  # made once
