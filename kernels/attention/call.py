"""What a backend is asked when it is to say whether it takes a call."""

import importlib
from functools import lru_cache
from typing import NamedTuple

import torch

from magi_world.kernels.attention.device_slices import DeviceSlices
from magi_world.kernels.attention.slices import AttnSlices


class Call(NamedTuple):
    """A call without its data."""

    device: torch.device
    dtype: torch.dtype
    width: int
    """head width D"""
    capability: int
    """of the device, 90 for sm_90; 0 where there is none"""
    softcap: bool
    sink: bool
    needs_grad: bool
    deterministic: bool = False
    refilled: bool = False
    """whether the mask is refilled between calls"""


class Refusal(NamedTuple):
    """Why a backend does not take a call."""

    reason: str
    missing: bool = False
    """whether a package would help"""


def current(slices: AttnSlices | DeviceSlices) -> AttnSlices:
    """The mask itself, also of one that is refilled."""
    return slices.slices if isinstance(slices, DeviceSlices) else slices


@lru_cache(maxsize=16)
def import_refusal(module: str, extra: str) -> Refusal | None:
    """None when a module imports, else why it does not and how to get it."""
    try:
        importlib.import_module(module)
    except Exception as error:  # a GPU package may fail in any way on the wrong machine
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        return Refusal(
            f"needs the module {module!r}, which does not import ({cause}): "
            f"pip install 'magi-world[{extra}]'",
            missing=True,
        )
    return None
