"""What slices cover: areas, crops, transposes, and key intervals row by row.

All functions are exact and take time in proportion to slices or rows, never to cells. A slice is
``(q_start, q_end, k_start, k_end, type)`` as in :mod:`magi_world.kernels.attention.slices`.

Shape suffixes: S slices, F intervals of a row, R rows.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Slice = tuple[int, int, int, int, int]
Ints = NDArray[np.int64]


def bounds(slices: Sequence[Slice], rows_R: Ints) -> tuple[Ints, Ints]:
    """First and one-past-last key of every slice in every row, `[S, R]` (empty where L >= R)."""
    table = np.array(slices, dtype=np.int64).reshape(-1, 5, 1)
    q_start, q_end, k_start, k_end, kind = (table[:, i] for i in range(5))
    left = k_start + (kind >> 1) * (rows_R - q_start)
    right = k_end - (kind & 1) * (q_end - 1 - rows_R)
    return left, right


def has_cells(row: Slice) -> bool:
    """Whether a slice covers anything."""
    n, m = row[1] - row[0], row[3] - row[2]
    return n > 0 and m > 0 and not (row[4] == 3 and n > m)


def slice_area(row: Slice) -> int:
    """Number of cells of a slice."""
    if not has_cells(row):
        return 0
    n, m, kind = row[1] - row[0], row[3] - row[2], row[4]
    if kind == 0:
        return n * m
    if kind == 3:
        return n * (m - n + 1)
    return n * (2 * m - n + 1) // 2 if m >= n else m * (m + 1) // 2


def crop_slice(row: Slice, queries: tuple[int, int], keys: tuple[int, int]) -> list[Slice]:
    """The part of a slice inside a rectangle, as at most three slices.

    A window of keys cuts a sloping edge into a part that still slopes and parts that follow the
    window, so the rows are cut where an edge enters or leaves the window.
    """
    if not has_cells(row):
        return []
    q_start, q_end, k_start, k_end, kind = row
    q0, q1 = max(queries[0], q_start), min(queries[1], q_end)
    k0, k1 = max(keys[0], k_start), min(keys[1], k_end)
    if q0 >= q1 or k0 >= k1:
        return []
    a, b = kind >> 1, kind & 1
    breaks = {q0, q1}
    if a:
        breaks |= {q_start + k0 - k_start + 1, q_start + k1 - k_start}
    if b:
        breaks |= {q_end - k_end + k0, q_end - 1 - k_end + k1}
    borders = sorted(edge for edge in breaks if q0 <= edge <= q1)
    result = []
    for start, end in zip(borders, borders[1:], strict=False):
        left = k_start + a * (start - q_start)
        right = k_end - b * (q_end - end)
        if left >= k1 or right <= k0:
            continue
        slopes_left, slopes_right = int(a and left > k0), int(b and right < k1)
        first, last = (left if slopes_left else k0), (right if slopes_right else k1)
        if first < last:
            result.append((start, end, first, last, slopes_left << 1 | slopes_right))
    return result


def transpose_slice(row: Slice) -> list[Slice]:
    """The same cells with keys as rows, as at most three slices."""
    if not has_cells(row):
        return []
    q_start, q_end, k_start, k_end, kind = row
    n, m = q_end - q_start, k_end - k_start
    # key j of the slice is seen by the rows first(j) <= i < last(j)
    a, b, lag = kind >> 1, kind & 1, m - n
    breaks = {0, m} | ({lag} if b else set()) | ({n} if a else set())
    borders = sorted(edge for edge in breaks if 0 <= edge <= m)
    result = []
    for start, end in zip(borders, borders[1:], strict=False):
        first = max(0, start - lag) if b else 0
        last = min(n, end) if a else n
        slopes = int(b and start >= lag) << 1 | int(a and end <= n)
        if first < last:
            rows = (k_start + start, k_start + end)
            result.append((*rows, q_start + first, q_start + last, slopes))
    return result


def merge_intervals(left_FR: Ints, right_FR: Ints) -> tuple[Ints, Ints]:
    """Union of each row's intervals: sorted, apart from each other, empty ones last as (0, 0)."""
    R = left_FR.shape[1]
    empty = left_FR >= right_FR
    order = np.argsort(np.where(empty, np.iinfo(np.int64).max, left_FR), axis=0, kind="stable")
    left, right = (np.take_along_axis(x, order, 0) for x in (left_FR, right_FR))
    empty = left >= right
    reach = np.maximum.accumulate(np.where(empty, -1, right), axis=0)
    opens = ~empty
    opens[1:] &= left[1:] > reach[:-1]
    place = np.cumsum(opens, axis=0) - 1
    merged = np.zeros((2, max(1, int(place.max(initial=-1)) + 1), R), dtype=np.int64)
    for f in range(left.shape[0]):
        (rows,) = np.nonzero(opens[f])
        merged[0, place[f, rows], rows] = left[f, rows]
        (rows,) = np.nonzero(~empty[f])
        merged[1, place[f, rows], rows] = reach[f, rows]
    return merged[0], merged[1]


def slices_from_intervals(left_FR: Ints, right_FR: Ints) -> list[Slice]:
    """Few slices that cover the given intervals, none of which touch each other in a row.

    Rows are joined as long as every edge moves by the same 0 or 1 from row to row.
    """
    filled = left_FR < right_FR
    steps = np.concatenate([np.diff(left_FR, axis=1), np.diff(right_FR, axis=1)])  # [2F, R - 1]
    joins = ((steps == 0) | (steps == 1)).all(0) & (filled[:, 1:] == filled[:, :-1]).all(0)
    same = (steps[:, 1:] == steps[:, :-1]).all(0)  # the step out of a row is the step into it
    result: list[Slice] = []
    start, R = 0, left_FR.shape[1]
    while start < R:
        end = start + 1
        while end < R and joins[end - 1] and (end == start + 1 or same[end - 2]):
            end += 1
        for f in np.nonzero(filled[:, start])[0]:
            ks, ke = int(left_FR[f, start]), int(right_FR[f, end - 1])
            a = int(left_FR[f, end - 1] > ks)
            b = int(right_FR[f, start] < ke)
            result.append((start, end, ks, ke, a << 1 | b))
        start = end
    return result


def join_columns(slices: Iterable[Slice]) -> list[Slice]:
    """Join full slices of the same rows whose keys follow each other."""
    result: list[Slice] = []
    for row in sorted(slices, key=lambda row: (row[0], row[1], row[4], row[2])):
        last = result[-1] if result else None
        if last and row[4] == last[4] == 0 and row[:2] == last[:2] and last[3] == row[2]:
            result[-1] = (*last[:3], row[3], 0)
        else:
            result.append(row)
    return result
