"""A mask as tensors on a device, of fixed size: what changes from step to step is data.

A compiled kernel and a captured graph keep the addresses and shapes that they saw first. A mask
that grows with the history of a slot would need a new one for every step; here the same buffers
are refilled in place, and list entries behind the last one are never read.
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi_world.kernels.attention.errors import SliceError
from magi_world.kernels.attention.handles import new_handle
from magi_world.kernels.attention.slices import AttnSlices
from magi_world.kernels.attention.tiles import TileList, Tiles, tile_lists


@dataclass(frozen=True, eq=False)
class TileTensors:
    """A :class:`~magi_world.kernels.attention.tiles.TileList` on a device, int32."""

    starts: Tensor
    splits: Tensor
    ends: Tensor
    tiles: Tensor
    owners: Tensor
    order: Tensor


@dataclass(frozen=True, eq=False)
class TilePlan:
    """Slices `[S, 5]` and the lists of both sides on a device."""

    slices: Tensor
    by_query: TileTensors
    by_key: TileTensors


def _pairs(plan: TilePlan, tiles: Tiles) -> list[tuple[str, Tensor, NDArray[np.int32]]]:
    pairs = [("slices", plan.slices, tiles.slices)]
    for mine, theirs in ((plan.by_query, tiles.by_query), (plan.by_key, tiles.by_key)):
        for field in fields(TileTensors):
            name = field.name
            pairs.append((name, getattr(mine, name), getattr(theirs, name)))
    return pairs


def _empty(tiles: Tiles, device: torch.device, slices: int, entries: int) -> TilePlan:
    def side(lists: TileList) -> TileTensors:
        sizes = {field.name: getattr(lists, field.name).size for field in fields(TileTensors)}
        sizes |= {"tiles": entries, "owners": entries}
        return TileTensors(
            **{name: torch.zeros(n, dtype=torch.int32, device=device) for name, n in sizes.items()}
        )

    table = torch.zeros(slices, 5, dtype=torch.int32, device=device)
    return TilePlan(table, side(tiles.by_query), side(tiles.by_key))


def _fill(plan: TilePlan, tiles: Tiles) -> None:
    for name, target, source in _pairs(plan, tiles):
        if source.shape[0] > target.shape[0]:
            raise SliceError(
                f"{source.shape[0]} {'slices' if name == 'slices' else 'tile entries'} do not fit "
                f"into the {target.shape[0]} that were reserved"
            )
    for _, target, source in _pairs(plan, tiles):
        target[: source.shape[0]].copy_(torch.from_numpy(source))


@torch.inference_mode(False)  # kept with the mask, which training may use next
def tile_plan(
    slices: "AttnSlices | DeviceSlices",
    shape: tuple[int, int],
    block: tuple[int, int],
    device: torch.device,
) -> TilePlan:
    """The tile lists of a mask on a device, made once.

    Args:
        slices: the mask; a refillable one answers with the buffers that it refills.
        shape: numbers of queries and keys.
        block: rows and keys of a tile.
        device: where the kernel runs.
    """
    if isinstance(slices, DeviceSlices):
        return slices.plan(block)
    key = ("tiles", shape, block, device)
    known: TilePlan | None = slices.plans.get(key)
    if known is None:
        tiles = tile_lists(slices, shape, *block)
        entries = tiles.by_query.tiles.size
        known = _empty(tiles, device, tiles.slices.shape[0], entries)
        _fill(known, tiles)
        slices.plans[key] = known
    return known


class DeviceSlices:
    """A mask of fixed capacity that is refilled in place before each call.

    It may be given to :func:`magi_world.kernels.attention.attention` wherever an
    :class:`~magi_world.kernels.attention.AttnSlices` may. ``triton``, which ``auto`` prefers for it
    on a GPU, reads its buffers, which never move; the others read the mask that it was last filled
    with, and refuse while a CUDA graph is being captured, because the graph would keep that mask.

    Lists for a tile size are made when a backend first asks for that size: run a step once before
    capturing a graph of it.
    """

    def __init__(
        self,
        *,
        num_queries: int,
        num_keys: int,
        max_slices: int,
        max_tiles: int,
        device: torch.device | str = "cpu",
    ) -> None:
        """Reserve room.

        Args:
            num_queries: queries of every call.
            num_keys: keys of every call.
            max_slices: most slices of a mask.
            max_tiles: most entries of a tile list: tiles that slices touch, a partial tile once
                for each slice.
            device: where the kernels run.
        """
        self.shape = (num_queries, num_keys)
        self.max_slices, self.max_tiles = max_slices, max_tiles
        self.device = torch.device(device)
        self.slices = AttnSlices.from_list([])
        """the mask that it was last filled with"""
        self._plans: dict[tuple[int, int], TilePlan] = {}
        self.handle = new_handle(self)
        """the number by which the registered operation knows it in this process"""

    def extent(self) -> tuple[int, int]:
        """Numbers of queries and keys of every call."""
        return self.shape

    def fill(self, slices: AttnSlices) -> None:
        """Take another mask.

        Raises:
            SliceError: it reaches beyond the queries or keys, or it needs more room than there is;
                the mask stays as it was.
        """
        extent = slices.extent()
        if extent[0] > self.shape[0] or extent[1] > self.shape[1]:
            raise SliceError(
                f"the mask reaches to query {extent[0]} and key {extent[1]}, but there is room "
                f"for {self.shape[0]} queries and {self.shape[1]} keys"
            )
        made = {block: tile_lists(slices, self.shape, *block) for block in self._plans}
        for tiles in made.values():
            self._check(tiles)
        if len(slices.rows) > self.max_slices:
            raise SliceError(f"{len(slices.rows)} slices do not fit into the {self.max_slices}")
        for block, tiles in made.items():
            _fill(self._plans[block], tiles)
        self.slices = slices

    def _check(self, tiles: Tiles) -> None:
        entries = tiles.by_query.tiles.size
        if entries > self.max_tiles:
            raise SliceError(f"{entries} tile entries do not fit into the {self.max_tiles}")

    @torch.inference_mode(False)
    def plan(self, block: tuple[int, int]) -> TilePlan:
        """Buffers for a tile size, filled with the current mask.

        Raises:
            SliceError: the current mask needs more tiles of this size than there is room for.
        """
        if block not in self._plans:
            tiles = tile_lists(self.slices, self.shape, *block)
            self._check(tiles)
            made = _empty(tiles, self.device, self.max_slices, self.max_tiles)
            _fill(made, tiles)
            self._plans[block] = made
        return self._plans[block]
