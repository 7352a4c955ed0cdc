"""Weights of a module kept in host memory, and modules that come to the device for a call."""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from magi_world.offload.copies import host_empty

_ALIGNMENT = 64  # bytes; also what vector loads of the device want


class HostWeights:
    """Parameters and buffers of a module, moved into one block of host memory.

    They stay the module's own: `state_dict` and everything else sees them, wherever they point.
    Only their storage changes, so weights that are shared stay shared.
    """

    def __init__(
        self, module: nn.Module, device: torch.device, *, without: Iterable[nn.Module] = ()
    ) -> None:
        """Move the weights out.

        Args:
            module: its submodules' weights are taken too.
            device: where they will be needed.
            without: submodules whose weights are left alone.
        """
        left_alone = {id(part) for other in without for part in other.modules()}
        found: dict[int, tuple[Tensor, list[tuple[nn.Module, str]]]] = {}
        for part in module.modules():
            if id(part) in left_alone:
                continue
            for name, tensor in (*part._parameters.items(), *part._buffers.items()):
                if tensor is not None:
                    found.setdefault(id(tensor), (tensor, []))[1].append((part, name))
        self._layout: list[tuple[int, int, torch.dtype, torch.Size]] = []
        self.nbytes = 0
        for tensor, _ in found.values():
            size = tensor.numel() * tensor.element_size()
            self._layout.append((self.nbytes, size, tensor.dtype, tensor.shape))
            self.nbytes += -(-size // _ALIGNMENT) * _ALIGNMENT
        self.block = host_empty(self.nbytes, device)
        """the weights as bytes, for one copy"""
        self._home = self.views(self.block)
        # a parameter, which keeps its identity, or the names of a buffer, which is replaced
        self._places: list[nn.Parameter | list[tuple[nn.Module, str]]] = []
        with torch.no_grad():
            for view, (tensor, names) in zip(self._home, found.values(), strict=True):
                view.copy_(tensor)
                self._places.append(tensor if isinstance(tensor, nn.Parameter) else names)
        self.point_home()

    def views(self, block: Tensor) -> list[Tensor]:
        """The weights laid over a block of `nbytes` or more, in a fixed order."""
        return [
            block[start : start + size].view(dtype).view(shape)
            for start, size, dtype, shape in self._layout
        ]

    def point_at(self, views: list[Tensor]) -> None:
        """Let the module compute with these views."""
        for view, place in zip(views, self._places, strict=True):
            if isinstance(place, nn.Parameter):
                place.data = view
            else:
                for part, name in place:
                    part._buffers[name] = view

    def point_home(self) -> None:
        """Let the module's weights be those in host memory."""
        self.point_at(self._home)


class OnDemand:
    """A module that is on the device only inside ``with``; entering twice is fine.

    Its weights never change, so leaving copies nothing back.
    """

    def __init__(self, module: nn.Module, device: str | torch.device) -> None:
        self.module = module
        self.device = torch.device(device)
        self._weights = HostWeights(module, self.device)
        self._inside = 0

    @property
    def nbytes(self) -> int:
        """Memory that the module takes on the device while it is there."""
        return self._weights.nbytes

    def __enter__(self) -> Self:
        if self._inside == 0:
            block = torch.empty(self.nbytes, dtype=torch.uint8, device=self.device)
            block.copy_(self._weights.block, non_blocking=True)
            self._weights.point_at(self._weights.views(block))
        self._inside += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._inside -= 1
        if self._inside == 0:
            self._weights.point_home()
