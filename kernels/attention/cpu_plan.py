"""How a mask is cut for the backend ``cpu``: blocks of rows, pieces of keys.

The keys of a block fall into pieces that all its rows see, where no mask is applied, and pieces
that only some see.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from magi_world.kernels.attention.geometry import Slice, bounds, crop_slice
from magi_world.kernels.attention.slices import AttnSlices

ROWS = 256
"""most rows of a block"""
KEYS = 64, 512
"""fewest and most keys of a piece"""
SCORES = 1 << 19
"""most scores of a block, all heads: 2 MiB; few are no work for threads, many leave the cache"""
SMALL = 64
"""neighbouring rows under different slices share a block up to this size"""


@dataclass(frozen=True, eq=False)
class Piece:
    """Keys [start, end) of a block; `left` and `right` are `[slices of a row, rows]`.

    They are None when all rows see all keys.
    """

    start: int
    end: int
    left: Tensor | None = None
    right: Tensor | None = None

    def hidden(self) -> Tensor | None:
        """Booleans `[rows, keys]`, True where a row does not see a key."""
        if self.left is None or self.right is None:
            return None
        keys = torch.arange(self.start, self.end, dtype=self.left.dtype)
        seen: Tensor | None = None
        for left, right in zip(self.left, self.right, strict=True):
            inside = (keys >= left[:, None]).logical_and_(keys < right[:, None])
            seen = inside if seen is None else seen.logical_or_(inside)
        assert seen is not None  # a piece has at least one slice
        hidden: Tensor = seen.logical_not_()
        return hidden


@dataclass(frozen=True, eq=False)
class Block:
    """Rows [start, end) and the pieces of keys that they see."""

    start: int
    end: int
    pieces: tuple[Piece, ...]


def _cut(start: int, end: int, most: int) -> list[tuple[int, int]]:
    return [(at, min(at + most, end)) for at in range(start, end, most)]


def _blocks(slices: AttnSlices) -> list[tuple[int, int, list[Slice]]]:
    """Row ranges and the slices that touch them."""
    result: list[tuple[int, int, dict[Slice, None]]] = []  # a set that keeps the order
    for segment in slices.segments:
        if result and slices.key_block is None:
            start, end, known = result[-1]
            if end == segment.start and segment.end - start <= SMALL:
                known.update(dict.fromkeys(segment.slices))
                result[-1] = (start, segment.end, known)
                continue
        for start, end in _cut(segment.start, segment.end, ROWS):
            result.append((start, end, dict.fromkeys(segment.slices)))
    return [(start, end, list(known)) for start, end, known in result]


def _masked(edge: tuple[int, int], parts: list[Slice], rows: tuple[int, int]) -> Piece:
    """A piece that the rows see as far as these slices say."""
    sides = np.zeros((2, len(parts), rows[1] - rows[0]), dtype=np.int32)
    for i, part in enumerate(parts):
        inside = slice(part[0] - rows[0], part[1] - rows[0])
        sides[:, i, inside] = np.concatenate(bounds([part], np.arange(part[0], part[1])))
    # of many slices a row is in few: each row gets its own, one after the other
    used = sides[0] < sides[1]
    place = np.cumsum(used, axis=0) - 1
    packed = np.zeros((2, max(1, int(used.sum(0).max())), used.shape[1]), dtype=np.int32)
    which, row = np.nonzero(used)
    packed[:, place[which, row], row] = sides[:, which, row]
    return Piece(*edge, torch.from_numpy(packed[0]), torch.from_numpy(packed[1]))


class _Stretch(NamedTuple):
    """Keys [start, end) that some rows see, and the slices by which they do."""

    start: int
    end: int
    parts: dict[Slice, None]


def _stretches(
    rows: tuple[int, int], parts: list[Slice]
) -> tuple[list[tuple[int, int]], list[_Stretch]]:
    """Keys that all rows see, and keys that some see, both in order."""
    opens: dict[int, list[Slice]] = {}
    closes: dict[int, list[Slice]] = {}
    steps: dict[int, int] = {}  # by how many slices more all rows see the keys from here on
    for part in parts:
        q0, q1, k0, k1, kind = part
        opens.setdefault(k0, []).append(part)
        closes.setdefault(k1, []).append(part)
        first, last = k0 + (kind >> 1) * (q1 - 1 - q0), k1 - (kind & 1) * (q1 - 1 - q0)
        if (q0, q1) == rows and first < last:
            steps[first] = steps.get(first, 0) + 1
            steps[last] = steps.get(last, 0) - 1
    full: list[tuple[int, int]] = []
    some: list[_Stretch] = []
    borders = sorted({*opens, *closes, *steps})
    active: dict[Slice, None] = {}
    all_see = 0
    for a, b in zip(borders, borders[1:], strict=False):
        for part in closes.get(a, ()):
            del active[part]
        active.update(dict.fromkeys(opens.get(a, ())))
        all_see += steps.get(a, 0)
        if all_see:
            if full and full[-1][1] == a:
                a = full.pop()[0]
            full.append((a, b))
        elif active:
            last_some = some[-1] if some else None
            apart = full and last_some and full[-1][1] > last_some.start
            if last_some and a - last_some.end <= SMALL and not apart:
                last_some.parts.update(active)
                some[-1] = last_some._replace(end=b)
            else:
                some.append(_Stretch(a, b, dict(active)))
    return full, some


def _pieces(rows: tuple[int, int], slices: list[Slice], keys: int) -> tuple[Piece, ...]:
    """Cut the keys where an edge of a slice begins or ends to move over the rows of a block.

    A piece has at most `keys` keys.
    """
    parts = [part for row in slices for part in crop_slice(row, rows, (row[2], row[3]))]
    full, some = _stretches(rows, parts)
    result = [Piece(*edge) for a, b in full for edge in _cut(a, b, keys)]
    for a, b, owners in some:
        edges = _cut(a, b, keys)
        touching: list[list[Slice]] = [[] for _ in edges]
        for part in sorted(owners):
            first, last = (max(part[2], a) - a) // keys, (min(part[3], b) - 1 - a) // keys
            for i in range(first, last + 1):
                touching[i].append(part)
        result += [
            _masked(edge, own, rows) for edge, own in zip(edges, touching, strict=True) if own
        ]
    return tuple(result)


def plan_of(slices: AttnSlices, heads: int) -> tuple[Block, ...]:
    """The blocks of a mask for a number of query heads, made once."""
    fewest, keys = KEYS
    while keys > fewest and heads * ROWS * keys > SCORES:
        keys //= 2
    known: tuple[Block, ...] | None = slices.plans.get(("cpu", keys))
    if known is None:
        blocks = []
        with torch.inference_mode(False):  # kept with the mask, which training may use next
            for start, end, rows in _blocks(slices):
                if slices.key_block is None:
                    pieces = _pieces((start, end), rows, keys)
                else:  # whole key blocks: the shapes depend on nothing else
                    first = rows[0][2] // slices.key_block * slices.key_block
                    parts = [p for row in rows for p in crop_slice(row, (start, end), row[2:4])]
                    edges = _cut(first, first + slices.key_block, keys)
                    pieces = tuple(_masked(edge, parts, (start, end)) for edge in edges)
                blocks.append(Block(start, end, pieces))
        known = slices.plans["cpu", keys] = tuple(blocks)
    return known
