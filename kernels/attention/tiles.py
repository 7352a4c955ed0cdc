"""Which tiles of the score matrix a mask needs, as short lists for kernels that work on tiles.

Tile (i, j) holds the rows [i * block_q, (i + 1) * block_q) and the keys [j * block_k, ...). For
every query tile there is a list of the key tiles that it needs, and for every key tile a list of
the query tiles. A tile inside one slice is *full* and needs no mask; every other tile that a slice
touches is *partial* and listed once for each slice, with the slice whose bounds mask it. Cells are
never covered twice, so neither is anything computed twice.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from magi_world.kernels.attention.geometry import Slice, has_cells, join_columns
from magi_world.kernels.attention.slices import AttnSlices

Ints = NDArray[np.int64]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TileList:
    """Lists of all tiles of one side, one after the other (compressed rows), int32.

    Entries `starts[i] : ends[i]` belong to tile i; the full ones come first, up to `splits[i]`.
    """

    starts: Int32
    splits: Int32
    ends: Int32
    tiles: Int32
    """of each entry: the tile of the other side"""
    owners: Int32
    """of each entry: the slice that masks it, -1 when it is full"""
    order: Int32
    """tiles with the longest list first, so that no long one is left for the end"""


@dataclass(frozen=True, eq=False)
class Tiles:
    """The lists of both sides, and the slices that the owners count in, int32 `[S, 5]`."""

    slices: Int32
    by_query: TileList
    by_key: TileList


def _entries(
    rows: list[Slice], shape: tuple[int, int], block_q: int, block_k: int
) -> tuple[Ints, Ints, Ints]:
    """Query tile, key tile and owner of every entry."""
    table = np.array(rows, dtype=np.int64).reshape(-1, 5)
    first, last = table[:, 0] // block_q, -(-table[:, 1] // block_q)
    owner = np.repeat(np.arange(len(rows)), last - first)
    before = np.cumsum(last - first) - (last - first)
    i = np.arange(owner.size) - before[owner] + first[owner]  # query tile of (slice, query tile)
    q_start, q_end, k_start, k_end, kind = table[owner].T
    a, b = kind >> 1, kind & 1
    top, bottom = i * block_q, np.minimum((i + 1) * block_q, shape[0])
    q0, q1 = np.maximum(top, q_start), np.minimum(bottom, q_end)
    # both edges only move to the right: the outer and inner bounds are those of the end rows
    outer = np.stack([k_start + a * (q0 - q_start), k_end - b * (q_end - q1)])
    inner = np.stack([k_start + a * (q1 - 1 - q_start), k_end - b * (q_end - 1 - q0)])
    outer[0], outer[1] = np.maximum(outer[0], k_start), np.minimum(outer[1], k_end)
    touched = np.stack([outer[0] // block_k, -(-outer[1] // block_k)])
    touched[1] = np.where(outer[0] < outer[1], touched[1], touched[0])
    whole = np.stack([-(-inner[0] // block_k), inner[1] // block_k])
    covers = (q0 == top) & (q1 == bottom) & (whole[0] < whole[1])
    count = touched[1] - touched[0]
    pair = np.repeat(np.arange(i.size), count)
    j = np.arange(pair.size) - (np.cumsum(count) - count)[pair] + touched[0][pair]
    full = covers[pair] & (j >= whole[0][pair]) & (j < whole[1][pair])
    return i[pair], j, np.where(full, -1, owner[pair])


def _listed(side: Ints, other: Ints, owner: Ints, count: int) -> TileList:
    partial = owner >= 0
    order = np.lexsort((owner, other, partial, side))
    length = np.bincount(side, minlength=count)
    ends = np.cumsum(length)
    starts = ends - length
    splits = starts + np.bincount(side[~partial], minlength=count)
    arrays = (starts, splits, ends, other[order], owner[order], np.argsort(-length, kind="stable"))
    return TileList(*(array.astype(np.int32) for array in arrays))


def tile_lists(slices: AttnSlices, shape: tuple[int, int], block_q: int, block_k: int) -> Tiles:
    """Lists of a mask.

    Args:
        slices: the mask.
        shape: numbers of queries and keys that it lies on.
        block_q: rows of a tile.
        block_k: keys of a tile.
    """
    rows = join_columns(row for row in slices.rows if has_cells(row))
    i, j, owner = _entries(rows, shape, block_q, block_k)
    return Tiles(
        np.array(rows, dtype=np.int32).reshape(-1, 5),
        _listed(i, j, owner, -(-shape[0] // block_q)),
        _listed(j, i, owner, -(-shape[1] // block_k)),
    )


def padded(lists: TileList, num_others: int) -> tuple[Int32, Int32, Int32, Int32]:
    """The lists of one side as tables of fixed width, as FlexAttention and FlashAttention 4 read.

    Args:
        lists: of one side.
        num_others: number of tiles of the other side.

    Returns:
        Numbers of partial tiles `[n]` and their indices `[n, num_others]`, then the same for full
        tiles. A partial tile is in once, whatever the number of slices that touch it.
    """
    n = lists.starts.size
    result: list[Int32] = []
    for first, last in ((lists.splits, lists.ends), (lists.starts, lists.splits)):
        count = np.zeros(n, dtype=np.int32)
        index = np.zeros((n, num_others), dtype=np.int32)
        for i in range(n):
            found = np.unique(lists.tiles[first[i] : last[i]])
            count[i] = found.size
            index[i, : found.size] = found
        result += [count, index]
    return result[0], result[1], result[2], result[3]
