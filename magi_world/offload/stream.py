"""Weights that come to the device one unit after the other, the next while the last one computes.

The units run in a fixed order, again and again: the layers of a transformer. Two of them are on
the device at a time: the one that computes and the one that is being copied.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from magi_world.offload.copies import CopyLane
from magi_world.offload.modules import HostWeights

_PLACES = 2


class WeightStream:
    """Modules whose weights are streamed from host memory."""

    def __init__(
        self,
        units: Sequence[nn.Module],
        device: str | torch.device,
        *,
        without: Sequence[Sequence[nn.Module]] | None = None,
    ) -> None:
        """Move the weights of the units out and bring each in when it is called.

        Args:
            units: modules in the order in which they are called; any other order works, without
                the overlap.
            device: where they compute.
            without: for every unit its submodules whose weights stay where they are.
        """
        self.device = torch.device(device)
        self._lane = CopyLane(self.device)
        left = [()] * len(units) if without is None else without
        self._weights = [
            HostWeights(unit, self.device, without=parts)
            for unit, parts in zip(units, left, strict=True)
        ]
        size = max((weights.nbytes for weights in self._weights), default=0)
        blocks = [
            torch.empty(size, dtype=torch.uint8, device=self.device)
            for _ in range(min(_PLACES, len(units)))
        ]
        self._blocks = blocks
        # views are made here, outside of inference mode, where parameters may take them
        self._views = [[weights.views(block) for block in blocks] for weights in self._weights]
        self._held: list[int | None] = [None] * len(blocks)  # unit in each place
        self._marks: list[Any] = [None] * len(blocks)
        self._place = 0  # of the unit called last
        self.copies = 0
        """units copied so far"""
        self._hooks = []
        for index, unit in enumerate(units):
            self._hooks.append(unit.register_forward_pre_hook(partial(self._before, index)))
            self._hooks.append(
                unit.register_forward_hook(partial(self._after, index), always_call=True)
            )

    @property
    def device_bytes(self) -> int:
        """Memory that the streamed weights take on the device, whatever their number."""
        return sum(block.numel() for block in self._blocks)

    @property
    def host_bytes(self) -> int:
        """Memory that they take on the host."""
        return sum(weights.nbytes for weights in self._weights)

    def close(self) -> None:
        """Stop streaming; the weights stay in host memory and the device memory is freed."""
        for hook in self._hooks:
            hook.remove()
        self._lane.finish()
        self._hooks, self._blocks, self._views, self._held = [], [], [], []

    def _fetch(self, index: int, place: int) -> None:
        weights = self._weights[index]
        with self._lane.after_compute():
            self._blocks[place][: weights.nbytes].copy_(weights.block, non_blocking=True)
        self._held[place] = index
        self._marks[place] = self._lane.mark()
        self.copies += 1

    def _before(self, index: int, unit: nn.Module, args: Any) -> None:
        if index not in self._held:
            self._fetch(index, (self._place + 1) % len(self._blocks))
        self._place = place = self._held.index(index)
        self._lane.hold_compute(self._marks[place])
        self._weights[index].point_at(self._views[index][place])
        following = (index + 1) % len(self._weights)
        if following not in self._held:
            # the place held the unit before this one, whose computation has been issued
            self._fetch(following, (place + 1) % len(self._blocks))

    def _after(self, index: int, unit: nn.Module, args: Any, output: Any) -> None:
        self._weights[index].point_home()
