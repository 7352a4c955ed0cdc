"""Rows of keys and values of every layer, on the device or in host memory.

A forward opens the rows that its own keys and values go to, then extends layer after layer and
reads all rows of the layer back. In host memory two layers are on the device at a time: the one
that the attention reads and the next, which is copied while this one computes.

Shape suffixes: L layers, R rows, T own rows of a forward, K groups, D head width.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from magi_world.kernels.rope.write import CacheRows
from magi_world.offload.copies import CopyLane, host_empty

Ranges = Sequence[tuple[int, int]]
"""first row and the row behind the last one"""


class KVRows(Protocol):
    """Where a KV cache keeps its rows."""

    keys_LRKD: Tensor
    values_LRKD: Tensor

    def open(self, ranges: Ranges) -> None:
        """Say where the own rows of the next forward go, in their order."""

    def extend(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """Write the own rows of a layer; return all its rows `[R, K, D]` on the device."""

    def edit(self) -> None:
        """Announce that `keys_LRKD` and `values_LRKD` are about to be read or changed."""


class DeviceRows:
    """All rows on the device."""

    def __init__(
        self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocate zeros for `shape` = (L, R, K, D)."""
        self.keys_LRKD = torch.zeros(shape, dtype=dtype, device=device)
        self.values_LRKD = torch.zeros(shape, dtype=dtype, device=device)
        self._rows = torch.empty(0, dtype=torch.int64, device=device)

    def open(self, ranges: Ranges) -> None:
        """See :class:`KVRows`."""
        rows = [torch.arange(start, stop) for start, stop in ranges]
        self._rows = torch.cat(rows).to(self.keys_LRKD.device)

    def extend(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`KVRows`."""
        keys, values = self.keys_LRKD[layer], self.values_LRKD[layer]
        keys.index_copy_(0, self._rows, k_TKD)
        values.index_copy_(0, self._rows, v_TKD)
        return keys, values

    def place(self, layer: int) -> CacheRows:
        """Where the own rows of a layer go, for kernels that write them themselves."""
        return CacheRows(self.keys_LRKD[layer], self.values_LRKD[layer], self._rows)

    def edit(self) -> None:
        """Nothing is under way here."""


class HostRows:
    """All rows in host memory, two layers of them on the device."""

    def __init__(
        self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> None:
        """Allocate zeros for `shape` = (L, R, K, D) on the host, (2, R, K, D) on the device."""
        L, R, K, D = shape
        size = L * R * K * D * dtype.itemsize
        self.keys_LRKD = host_empty(size, device).zero_().view(dtype).view(shape)
        self.values_LRKD = host_empty(size, device).zero_().view(dtype).view(shape)
        places = min(2, L)
        self._staged = torch.zeros((2, places, R, K, D), dtype=dtype, device=device)
        self._held: list[int | None] = [None] * places  # layer in each place
        self._marks: list[torch.cuda.Event | None] = [None] * places
        self._place = 0
        self._lane = CopyLane(device)
        self._ranges: list[tuple[int, int]] = []

    @property
    def device_bytes(self) -> int:
        """Memory on the device, whatever the number of layers."""
        return self._staged.numel() * self._staged.element_size()

    def open(self, ranges: Ranges) -> None:
        """See :class:`KVRows`."""
        self._ranges = list(ranges)

    def extend(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`KVRows`."""
        if layer not in self._held:
            self._fetch(layer, (self._place + 1) % len(self._held))
        self._place = place = self._held.index(layer)
        self._lane.hold_compute(self._marks[place])
        keys, values = self._staged[0, place], self._staged[1, place]
        row = 0
        for start, stop in self._ranges:
            keys[start:stop] = k_TKD[row : row + stop - start]
            values[start:stop] = v_TKD[row : row + stop - start]
            row += stop - start
        with self._lane.after_compute():
            for start, stop in self._ranges:
                self.keys_LRKD[layer, start:stop].copy_(keys[start:stop], non_blocking=True)
                self.values_LRKD[layer, start:stop].copy_(values[start:stop], non_blocking=True)
        self._marks[place] = self._lane.mark()  # the rows may not change again before that
        following = (layer + 1) % len(self.keys_LRKD)
        if following not in self._held:
            # that place held the layer before this one, whose attention has been issued
            self._fetch(following, (place + 1) % len(self._held))
        return keys, values

    def edit(self) -> None:
        """Wait for copies under way and forget what is on the device."""
        self._lane.finish()
        self._held = [None] * len(self._held)

    def _fetch(self, layer: int, place: int) -> None:
        with self._lane.after_compute():
            self._staged[0, place].copy_(self.keys_LRKD[layer], non_blocking=True)
            self._staged[1, place].copy_(self.values_LRKD[layer], non_blocking=True)
        self._held[place] = layer
        self._marks[place] = self._lane.mark()
