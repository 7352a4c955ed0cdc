"""The mask of an attention call as a short list of slices (MagiAttention's AttnSlice).

A slice is ``(q_start, q_end, k_start, k_end, type)``. Row ``q`` of it sees the keys
``L(q) <= k < R(q)`` with

    L(q) = k_start + a * (q - q_start)        R(q) = k_end - b * (q_end - 1 - q)

where ``a = type >> 1`` and ``b = type & 1``: type 0 is full, 1 causal (aligned to the bottom
right), 2 inverse causal, 3 both. Ranges of different slices may overlap; a cell may not be covered
twice, because it would count twice in the softmax of some kernels and once in others.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import FrozenInstanceError, dataclass, field
from functools import lru_cache
from typing import Any, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray

from magi_world.kernels.attention.drawing import draw_text, plot_intervals
from magi_world.kernels.attention.errors import SliceError
from magi_world.kernels.attention.geometry import (
    Slice,
    bounds,
    crop_slice,
    merge_intervals,
    slice_area,
    slices_from_intervals,
    transpose_slice,
)
from magi_world.kernels.attention.handles import new_handle


# not frozen=True: torch.compile would then guard every slice and compile for each mask anew
@dataclass(eq=False)
class AttnSlices:
    """An immutable mask over packed tokens; build it with :meth:`from_list`.

    Masks in common use are built by :mod:`magi_world.kernels.attention.builders`.

    Attributes:
        rows: the slices, `(q_start, q_end, k_start, k_end, type)` each.
        key_block: None, or the number of key rows in one block. Then the keys of every query row
            lie in one aligned block, and a backend may process whole blocks with a mask, so that
            the shapes of the computation do not depend on how many keys a row sees.
    """

    rows: tuple[Slice, ...]
    key_block: int | None = None
    plans: dict[Any, Any] = field(default_factory=dict, repr=False)
    """what backends derived from the mask, kept because masks are reused call after call"""
    handle: int = field(init=False, repr=False)
    """the number by which the registered operation knows the mask in this process"""

    def __post_init__(self) -> None:
        if "segments" not in self.plans:
            raise SliceError("AttnSlices is made by AttnSlices.from_list, which checks the slices")
        self.handle = new_handle(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__:
            raise FrozenInstanceError(f"cannot assign to field {name!r}")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __getstate__(self) -> dict[str, Any]:
        return {"rows": self.rows, "key_block": self.key_block}

    def __setstate__(self, state: dict[str, Any]) -> None:
        made = {**state, "plans": {"segments": _segments(list(state["rows"]))}}
        self.__dict__.update(made)
        self.__post_init__()

    @classmethod
    def from_list(
        cls,
        slices: Iterable[Sequence[SupportsIndex]],
        *,
        key_block: int | None = None,
        union: bool = False,
    ) -> Self:
        """Build and check a mask.

        Args:
            slices: `(q_start, q_end, k_start, k_end, type)` each; slices without cells are fine.
            key_block: see the class.
            union: where slices overlap, replace all by slices that cover the same cells once.

        Raises:
            SliceError: a slice of wrong form, a cell covered twice, or keys across two blocks.
        """
        if key_block is not None and key_block < 1:
            raise SliceError(f"key_block {key_block} is below 1")
        rows: list[Slice] = []
        for given in slices:
            row = _numbers(given)
            q_start, q_end, k_start, k_end, kind = row
            if not (0 <= q_start <= q_end and 0 <= k_start <= k_end):
                raise SliceError(f"slice {row}: ranges must satisfy 0 <= start <= end")
            if kind not in (0, 1, 2, 3):
                raise SliceError(f"slice {row}: type {kind} is not one of 0, 1, 2, 3")
            if key_block is not None and k_start < k_end:
                if k_start // key_block != (k_end - 1) // key_block:
                    raise SliceError(f"slice {row} crosses a border of key blocks of {key_block}")
            rows.append((q_start, q_end, k_start, k_end, kind))
        segments = _segments(rows)
        double = next((pair for s in segments if (pair := _double_cells(s))), None)
        if double and not union:
            raise SliceError(
                f"slices {double[0]} and {double[1]} cover the same cells; "
                "union=True makes one mask of them"
            )
        if double:
            overlapping = cls(tuple(rows), plans={"segments": segments})
            rows = slices_from_intervals(*overlapping.row_intervals())
            segments = _segments(rows)
        if key_block is not None:
            _refuse_two_blocks(segments, key_block)
        return cls(tuple(rows), key_block, {"segments": segments})

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
        known: tuple[int, int] | None = self.plans.get("extent")
        if known is None:
            q = max((row[1] for row in self.rows), default=0)
            k = max((row[3] for row in self.rows), default=0)
            block = self.key_block or 1
            known = self.plans["extent"] = (q, -(-k // block) * block)
        return known

    def area(self) -> int:
        """Number of cells, the (query, key) pairs that are computed."""
        return sum(slice_area(row) for row in self.rows)

    def crop(
        self, queries: tuple[int, int] | None = None, keys: tuple[int, int] | None = None
    ) -> "AttnSlices":
        """The part of the mask in a rectangle, in unchanged coordinates.

        Args:
            queries: rows `[start, end)` to keep, all by default.
            keys: keys `[start, end)` to keep, all by default.

        Returns:
            A mask of at most three slices for each slice of this one, without key blocks.

        Raises:
            SliceError: a range that is none.
        """
        num_queries, num_keys = self.extent()
        queries, keys = queries or (0, num_queries), keys or (0, num_keys)
        for name, (start, end) in (("queries", queries), ("keys", keys)):
            if not 0 <= start <= end:
                raise SliceError(f"crop to {name} {start}:{end} needs 0 <= start <= end")
        return AttnSlices.from_list(
            part for row in self.rows for part in crop_slice(row, queries, keys)
        )

    def shift(self, queries: int = 0, keys: int = 0) -> "AttnSlices":
        """The mask moved by a number of rows and keys.

        Raises:
            SliceError: a slice would begin below zero.
        """
        q, k = queries, keys
        return AttnSlices.from_list(
            (row[0] + q, row[1] + q, row[2] + k, row[3] + k, row[4]) for row in self.rows
        )

    def transpose(self) -> "AttnSlices":
        """The mask with the roles of queries and keys exchanged, without key blocks."""
        return AttnSlices.from_list(part for row in self.rows for part in transpose_slice(row))

    def row_intervals(
        self, num_queries: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The keys of every row as intervals that do not touch each other.

        Args:
            num_queries: number of rows R, by default those of :meth:`extent`.

        Returns:
            First and one-past-last key, `[F, R]` each, sorted by key; F is the largest number of
            intervals that a row has (at least 1), and a row that has fewer is filled with (0, 0).
        """
        R = self.extent()[0] if num_queries is None else num_queries
        parts = [(s, merge_intervals(*s.intervals())) for s in self.segments if s.start < R]
        F = max((left.shape[0] for _, (left, _) in parts), default=1)
        result = np.zeros((2, F, R), dtype=np.int64)
        for segment, pair in parts:
            for side, found in zip(result, pair, strict=True):
                rows = slice(segment.start, min(segment.end, R))
                side[: found.shape[0], rows] = found[:, : rows.stop - rows.start]
        return result[0], result[1]

    def plot(self, ax: Any = None) -> Any:
        """Draw the mask: keys to the right, queries downwards, every visible cell filled.

        Args:
            ax: matplotlib axes to draw on, new ones by default.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        return plot_intervals(*self.row_intervals(), self.extent(), ax)

    def __str__(self) -> str:
        """Size, the first slices, and a coarse picture."""
        num_queries, num_keys = self.extent()
        cells, all_cells = self.area(), num_queries * num_keys
        share = f" ({cells / all_cells:.0%})" if all_cells else ""
        blocks = f", key blocks of {self.key_block}" if self.key_block else ""
        lines = [
            f"{len(self.rows)} slices on {num_queries} queries and {num_keys} keys{blocks}: "
            f"{cells} cells{share}"
        ]
        names = ("full", "causal", "inverse causal", "bi-causal")
        for q_start, q_end, k_start, k_end, kind in self.rows[:8]:
            lines.append(f"  q {q_start}:{q_end}  k {k_start}:{k_end}  {names[kind]}")
        if len(self.rows) > 8:
            lines.append(f"  ... {len(self.rows) - 8} more")
        return "\n".join([*lines, *draw_text(*self.row_intervals(), num_keys)])


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
        return bounds(self.slices, np.arange(self.start, self.end))


def _numbers(given: Sequence[SupportsIndex]) -> Slice:
    """Five whole numbers."""
    try:
        row = tuple(operator.index(value) for value in given)
    except TypeError:
        raise SliceError(f"slice {given!r}: expected five whole numbers") from None
    if len(row) != 5:
        raise SliceError(f"slice {row} has {len(row)} numbers, not 5")
    return row


def _segments(rows: Sequence[Slice]) -> list[Segment]:
    """Cut the rows at every border of a slice."""
    rows = [row for row in rows if row[0] < row[1] and row[2] < row[3]]
    borders = np.unique(np.array([row[:2] for row in rows], dtype=np.int64).reshape(-1))
    cover: dict[int, list[Slice]] = {}
    for row in rows:
        first, last = np.searchsorted(borders, row[:2])
        for index in range(first, last):
            cover.setdefault(int(index), []).append(row)
    return [
        Segment(
            int(borders[index]),
            int(borders[index + 1]),
            tuple(sorted(cover[index], key=lambda row: row[2])),
        )
        for index in sorted(cover)
    ]


def _refuse_two_blocks(segments: Iterable[Segment], key_block: int) -> None:
    for segment in segments:
        blocks = {row[2] // key_block for row in segment.slices}
        if len(blocks) > 1:
            raise SliceError(
                f"rows {segment.start}:{segment.end} see the key blocks {sorted(blocks)}, "
                f"but with key_block={key_block} only one is allowed"
            )


def _double_cells(segment: Segment) -> tuple[Slice, Slice] | None:
    """Two slices of a segment that share cells."""
    slices = segment.slices
    if len(slices) < 2:
        return None
    if segment.full:  # sorted by first key: neighbours decide
        neighbours = zip(slices, slices[1:], strict=False)
        return next(((one, two) for one, two in neighbours if one[3] > two[2]), None)
    left, right = segment.intervals()
    for i in range(len(slices)):
        for j in range(i):
            lower, upper = np.maximum(left[i], left[j]), np.minimum(right[i], right[j])
            if (lower < upper).any():
                return slices[j], slices[i]
    return None
