"""What a mask can be asked: union, area, crop, transpose, row intervals, pictures; the builders."""

import builtins
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from magi_world.kernels.attention import AttnSlices, SliceError, builders
from magi_world.kernels.attention.geometry import Slice, crop_slice, join_columns, transpose_slice
from magi_world.kernels.attention.reference import dense_mask
from tests.kernels.test_attention import masks
from tests.kernels.test_slices import K, Q, cells, ranges, slice_rows

Dense = NDArray[np.bool_]


def dense(slices: AttnSlices, queries: int = Q, keys: int = K) -> Dense:
    result: Dense = dense_mask(slices, queries, keys).numpy()
    return result


@given(st.lists(slice_rows(), max_size=6))
def test_a_union_covers_every_cell_once(rows: list[Slice]) -> None:
    expected = sum((cells(row) for row in rows), np.zeros((Q, K), np.int64)) > 0
    union = AttnSlices.from_list(rows, union=True)
    assert np.array_equal(dense(union), expected)
    assert union.area() == expected.sum()
    again = AttnSlices.from_list(union.rows)  # no cell is covered twice any more
    assert np.array_equal(dense(again), expected)


def test_a_union_is_short() -> None:
    band = [(i, i + 1, i, i + 3, 0) for i in range(100)]
    overlapping = AttnSlices.from_list([*band, (0, 100, 0, 1, 0)], union=True)
    assert overlapping.rows == ((0, 2, 0, 4, 1), (2, 100, 0, 1, 0), (2, 100, 2, 102, 3))
    assert AttnSlices.from_list([(0, 4, 0, 4, 1)] * 2, union=True).rows == ((0, 4, 0, 4, 1),)
    apart = [(0, 4, 0, 2, 0), (0, 4, 2, 4, 0)]  # nothing overlaps: kept as given
    assert AttnSlices.from_list(apart, union=True).rows == tuple(apart)


def test_overlaps_name_the_way_out() -> None:
    with pytest.raises(SliceError, match=r"cover the same cells; union=True"):
        AttnSlices.from_list([(0, 4, 0, 4, 1), (3, 4, 0, 1, 0)])


@given(slice_rows(), ranges(Q + 2), ranges(K + 2))
def test_a_crop_is_what_lies_inside(row: Slice, queries: list[int], keys: list[int]) -> None:
    parts = crop_slice(row, (queries[0], queries[1]), (keys[0], keys[1]))
    assert len(parts) <= 3
    window = np.zeros((Q, K), bool)
    window[slice(*queries), slice(*keys)] = True
    cropped = AttnSlices.from_list([row]).crop((queries[0], queries[1]), (keys[0], keys[1]))
    assert cropped.rows == tuple(parts)
    assert np.array_equal(dense(cropped), (cells(row) == 1) & window)


@given(masks(queries=Q, keys=K))
def test_crops_of_one_side_keep_the_other(mask: AttnSlices) -> None:
    halves = [mask.crop(queries=(0, 4)), mask.crop(queries=(4, Q))]
    assert sum(half.area() for half in halves) == mask.area()
    assert np.array_equal(dense(halves[0]) | dense(halves[1]), dense(mask))
    assert np.array_equal(dense(mask.crop(keys=(3, 5)))[:, 3:5], dense(mask)[:, 3:5])
    assert np.array_equal(dense(mask.crop()), dense(mask))


@pytest.mark.parametrize("given_range", [(3, 2), (-1, 4)])
def test_a_crop_needs_a_range(given_range: tuple[int, int]) -> None:
    mask = builders.full(4)
    with pytest.raises(SliceError, match="crop to keys"):
        mask.crop(keys=given_range)


@given(slice_rows())
def test_a_transpose_exchanges_queries_and_keys(row: Slice) -> None:
    assert len(transpose_slice(row)) <= 3
    turned = AttnSlices.from_list([row]).transpose()
    assert np.array_equal(dense(turned, K, Q), (cells(row) == 1).T)


@given(masks(queries=Q, keys=K))
def test_masks_transpose_and_count(mask: AttnSlices) -> None:
    expected = dense(mask)
    assert mask.area() == expected.sum()
    assert np.array_equal(dense(mask.transpose(), K, Q), expected.T)
    assert np.array_equal(dense(mask.transpose().transpose()), expected)


@given(masks(queries=Q, keys=K), st.integers(0, Q + 3))
def test_row_intervals_are_sorted_apart_and_complete(mask: AttnSlices, rows: int) -> None:
    left, right = mask.row_intervals(rows)
    assert left.shape == right.shape and left.shape[1] == rows
    expected = dense(mask, Q + 3)
    for row in range(rows):
        filled = [(a, b) for a, b in zip(left[:, row], right[:, row], strict=True) if a < b]
        empty = [(a, b) for a, b in zip(left[:, row], right[:, row], strict=True) if a >= b]
        assert empty == [(0, 0)] * len(empty)
        assert list(zip(left[:, row], right[:, row], strict=True)) == filled + empty
        assert all(one[1] < two[0] for one, two in zip(filled, filled[1:], strict=False))
        seen = np.zeros(K, bool)
        for a, b in filled:
            seen[a:b] = True
        assert np.array_equal(seen, expected[row])


def test_columns_that_follow_each_other_are_joined() -> None:
    rows = [(0, 4, 2, 5, 0), (0, 4, 0, 2, 0), (0, 4, 6, 8, 0), (4, 8, 0, 4, 1), (4, 8, 4, 8, 0)]
    assert join_columns(rows) == [
        (0, 4, 0, 5, 0), (0, 4, 6, 8, 0), (4, 8, 4, 8, 0), (4, 8, 0, 4, 1),
    ]  # fmt: skip


def test_a_mask_prints_as_a_picture() -> None:
    text = str(builders.block_causal(6, 2)).splitlines()
    assert text[0] == "3 slices on 6 queries and 6 keys: 24 cells (67%)"
    assert text[1] == "  q 0:2  k 0:2  full"
    assert text[4:] == ["  ██····"] * 2 + ["  ████··"] * 2 + ["  ██████"] * 2
    long = str(builders.block_causal(65536, 4096))
    assert "... 8 more" in long and len(long.splitlines()) == 34
    assert str(AttnSlices.from_list([])) == "0 slices on 0 queries and 0 keys: 0 cells"


def test_a_mask_plots_its_rows() -> None:
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    assert builders.sliding_window(8, 2, 2).plot(axes) is axes
    (drawn,) = axes.collections
    path = drawn.get_paths()[0]
    expected = dense(builders.sliding_window(8, 2, 2), 8, 8)
    for row in range(8):
        for key in range(8):
            assert path.contains_point((key + 0.5, row + 0.5)) == expected[row, key]
    assert axes.get_ylim() == (8, 0)  # queries run downwards


def test_plotting_names_the_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ImportError, match=r"pip install 'magi-world\[eval\]'"):
        builders.full(4).plot()


@pytest.mark.parametrize("n", range(1, 9))
def test_sliding_windows(n: int) -> None:
    q, k = np.ogrid[:n, :n]
    for left in (None, *range(11)):
        for right in (None, *range(11)):
            expected = (k >= q - (n if left is None else left)) & (
                k <= q + (n if right is None else right)
            )
            mask = builders.sliding_window(n, left, right)
            assert np.array_equal(dense(mask, n, n), expected), (left, right)
            assert len(mask.rows) <= 3


def test_full_and_causal() -> None:
    assert builders.full(3, 5).rows == ((0, 3, 0, 5, 0),)
    assert builders.causal(3).rows == ((0, 3, 0, 3, 1),)
    assert dense(builders.causal(2, 4), 2, 4).sum(1).tolist() == [3, 4]


@given(st.integers(0, 20), st.integers(1, 6), st.sampled_from([None, 1, 2, 3]))
def test_block_causal(n: int, block: int, window: int | None) -> None:
    q, k = np.ogrid[:n, :n]
    back = q // block - k // block
    expected = (back >= 0) & (back < (window or 99))
    assert np.array_equal(dense(builders.block_causal(n, block, window=window), n, n), expected)


@given(st.lists(st.integers(0, 5), max_size=4), st.data())
def test_varlen(lengths: list[int], data: st.DataObject) -> None:
    keys = [data.draw(st.integers(0, 5)) for _ in lengths]
    for n, m in ((lengths, keys), (lengths, lengths)):
        q = np.repeat(np.arange(len(n)), n)[:, None]
        k = np.repeat(np.arange(len(m)), m)
        plain = builders.varlen(n, m)
        assert np.array_equal(dense(plain, sum(n), sum(m)), q == k)
        rows = builders.varlen(n, m, causal=True).rows
        assert [row[:4] for row in rows] == [row[:4] for row in plain.rows]
        assert {row[4] for row in rows} <= {1}
    within = np.concatenate([np.arange(n) for n in lengths] or [np.arange(0)])
    expected = (q == k) & (within[:, None] // 2 >= within // 2)
    blocks = builders.varlen(lengths, block=2)
    assert np.array_equal(dense(blocks, sum(lengths), sum(lengths)), expected)


@given(
    st.integers(0, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.data()
)  # fmt: skip
def test_video_window(
    history: int, window: int, tokens: int, slots: int, data: st.DataObject
) -> None:
    ranges = data.draw(st.lists(st.integers(1, 6), min_size=window, max_size=window))
    mask = builders.video_window(history, window, tokens, ranges, slots=slots)
    chunk_q = np.arange(slots * window).repeat(tokens)[:, None]
    chunk_k = np.arange(slots * (history + window)).repeat(tokens)
    own = history + chunk_q % window
    key = chunk_k % (history + window)
    expected = (chunk_q // window == chunk_k // (history + window)) & (key <= own)
    expected &= key > own - np.array(ranges)[chunk_q % window]
    assert np.array_equal(dense(mask, *expected.shape), expected)
    same = builders.video_window(history, window, tokens, 2, slots=slots)
    assert (
        same.rows == builders.video_window(history, window, tokens, [2] * window, slots=slots).rows
    )


def test_teacher_forcing() -> None:
    mask = builders.teacher_forcing(2, 3, 2, 2, copies=2)
    n = 2 * 3 * 2 * 3
    position = np.arange(n) // 2
    copy, sequence, chunk = position // 6, position // 3 % 2, position % 3
    q, k = (np.expand_dims(np.stack([copy, sequence, chunk]), axis) for axis in (2, 1))
    near = (q[1] == k[1]) & (q[2] - k[2] < 2)
    clean = (k[0] == 0) & near & np.where(q[0] == 0, k[2] <= q[2], k[2] < q[2])
    own = (q == k).all(0)
    assert np.array_equal(dense(mask, n, n), clean | own)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: builders.block_causal(4, 0), "block 0 is below 1"),
        (lambda: builders.block_causal(4, 2, window=0), "window 0 is below 1"),
        (lambda: builders.sliding_window(4, -1), "left -1 is below 0"),
        (lambda: builders.sliding_window(4, 1, -2), "right -2 is below 0"),
        (lambda: builders.varlen([1, 2], [3]), "2 query lengths but 1 key lengths"),
        (lambda: builders.varlen([1, -2]), "must not be negative"),
        (lambda: builders.varlen([4], causal=True, block=2), "exclude each other"),
        (lambda: builders.varlen([4], [6], block=2), "as many keys as queries"),
        (lambda: builders.video_window(-1, 1, 4, 2), "history -1 is below 0"),
        (lambda: builders.video_window(1, 0, 4, 2), "window 0 is below 1"),
        (lambda: builders.video_window(1, 2, 4, [2]), "expected 2 numbers of at least 1"),
        (lambda: builders.video_window(1, 2, 4, [2, 0]), "expected 2 numbers of at least 1"),
        (lambda: builders.teacher_forcing(1, 2, 3, 0), "kv_range 0 is below 1"),
        (lambda: builders.full(4).shift(keys=-1), "0 <= start <= end"),
    ],
)
def test_wrong_masks_are_named(build: Any, words: str) -> None:
    with pytest.raises(SliceError, match=words):
        build()
