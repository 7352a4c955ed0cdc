"""The mask of an attention call as a short list of slices (MagiAttention's AttnSlice).

A slice is ``(q_start, q_end, k_start, k_end, type)``. Row ``q`` of it sees the keys
``L(q) <= k < R(q)`` with

    L(q) = k_start + a * (q - q_start)        R(q) = k_end - b * (q_end - 1 - q)

where ``a = type >> 1`` and ``b = type & 1``: type 0 is full, 1 causal (aligned to the bottom
right), 2 inverse causal, 3 both. Ranges of different slices may overlap; a cell may not be covered
twice, because it would count twice in the softmax of some kernels and once in others.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Slice = tuple[int, int, int, int, int]


class SliceError(ValueError):
    """A slice list that is no mask: the slice and what is wrong with it."""


@dataclass(frozen=True, eq=False)
class AttnSlices:
    """An immutable mask over packed tokens; build it with :meth:`from_list`.

    Attributes:
        rows: the slices, `(q_start, q_end, k_start, k_end, type)` each.
        key_block: None, or the number of key rows in one block. Then the keys of every query row
            lie in one aligned block, and a backend may process whole blocks with a mask, so that
            the shapes of the computation do not depend on how many keys a row sees.
    """

    rows: tuple[Slice, ...]
    key_block: int | None = None
    plans: dict[str, Any] = field(default_factory=dict, repr=False)
    """what backends derived from the mask, kept because masks are reused call after call"""

    @classmethod
    def from_list(cls, slices: Iterable[Sequence[int]], *, key_block: int | None = None) -> Self:
        """Build and check a mask.

        Args:
            slices: `(q_start, q_end, k_start, k_end, type)` each; empty ranges are fine.
            key_block: see the class.

        Raises:
            SliceError: a slice of wrong form, a cell covered twice, or keys across two blocks.
        """
        if key_block is not None and key_block < 1:
            raise SliceError(f"key_block {key_block} is below 1")
        rows: list[Slice] = []
        for given in slices:
            row = tuple(int(value) for value in given)
            if len(row) != 5:
                raise SliceError(f"slice {tuple(given)} has {len(row)} numbers, not 5")
            q_start, q_end, k_start, k_end, kind = row
            if not (0 <= q_start <= q_end and 0 <= k_start <= k_end):
                raise SliceError(f"slice {row}: ranges must satisfy 0 <= start <= end")
            if kind not in (0, 1, 2, 3):
                raise SliceError(f"slice {row}: type {kind} is not one of 0, 1, 2, 3")
            if key_block is not None and k_start < k_end:
                if k_start // key_block != (k_end - 1) // key_block:
                    raise SliceError(f"slice {row} crosses a border of key blocks of {key_block}")
            rows.append((q_start, q_end, k_start, k_end, kind))
        mask = cls(tuple(rows), key_block)
        mask.plans["segments"] = _segments(mask)
        return mask

    @staticmethod
    @lru_cache(maxsize=256)
    def repeated(count: int, num_queries: int, num_keys: int) -> "AttnSlices":
        """``count`` independent clips in a row, each attending fully to its own keys."""
        q, k = num_queries, num_keys
        return AttnSlices.from_list(
            (i * q, (i + 1) * q, i * k, (i + 1) * k, 0) for i in range(count)
        )

    @property
    def segments(self) -> list["Segment"]:
        """Row ranges in which every row is covered by the same slices, in row order."""
        result: list[Segment] = self.plans["segments"]
        return result

    def extent(self) -> tuple[int, int]:
        """Smallest numbers of query and key rows that hold the mask, whole key blocks included."""
        q = max((row[1] for row in self.rows), default=0)
        k = max((row[3] for row in self.rows), default=0)
        block = self.key_block or 1
        return q, -(-k // block) * block


@dataclass(frozen=True, eq=False)
class Segment:
    """Query rows [start, end) covered by the same slices."""

    start: int
    end: int
    slices: tuple[Slice, ...]

    @property
    def full(self) -> bool:
        """Whether every row of the segment sees the same keys."""
        return all(kind == 0 for *_, kind in self.slices)

    def intervals(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and one-past-last visible key, each `[slices, rows]` (empty where L >= R)."""
        q = np.arange(self.start, self.end)
        table = np.array(self.slices, dtype=np.int64).reshape(-1, 5, 1)
        q_start, q_end, k_start, k_end, kind = (table[:, i] for i in range(5))
        left = k_start + (kind >> 1) * (q - q_start)
        right = k_end - (kind & 1) * (q_end - 1 - q)
        return left, right


def _segments(mask: AttnSlices) -> list[Segment]:
    """Cut the rows at every border of a slice; check that no cell is covered twice."""
    rows = [row for row in mask.rows if row[0] < row[1] and row[2] < row[3]]
    borders = np.unique(np.array([row[:2] for row in rows], dtype=np.int64).reshape(-1))
    cover: dict[int, list[Slice]] = {}
    for row in rows:
        first, last = np.searchsorted(borders, row[:2])
        for index in range(first, last):
            cover.setdefault(int(index), []).append(row)
    result = []
    for index in sorted(cover):
        slices = tuple(sorted(cover[index], key=lambda row: row[2]))
        segment = Segment(int(borders[index]), int(borders[index + 1]), slices)
        if len(slices) > 1:
            _refuse_double_cells(segment)
            if mask.key_block is not None:
                blocks = {row[2] // mask.key_block for row in slices}
                if len(blocks) > 1:
                    raise SliceError(
                        f"rows {segment.start}:{segment.end} see the key blocks {sorted(blocks)}, "
                        f"but with key_block={mask.key_block} only one is allowed"
                    )
        result.append(segment)
    return result


def _refuse_double_cells(segment: Segment) -> None:
    if segment.full:  # sorted by first key: neighbours decide
        for one, other in zip(segment.slices, segment.slices[1:], strict=False):
            if one[3] > other[2]:
                raise SliceError(f"slices {one} and {other} cover the same cells")
        return
    left, right = segment.intervals()
    for i in range(len(segment.slices)):
        for j in range(i):
            lower, upper = np.maximum(left[i], left[j]), np.minimum(right[i], right[j])
            if (lower < upper).any():
                raise SliceError(
                    f"slices {segment.slices[j]} and {segment.slices[i]} cover the same cells"
                )
