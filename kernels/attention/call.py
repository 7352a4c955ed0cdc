"""What a backend is asked when it is to say whether it takes a call."""

import importlib
import importlib.util
import inspect
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
def import_refusal(
    module: str, extra: str, function: str = "", takes: tuple[str, ...] = ()
) -> Refusal | None:
    """None when a module imports and a function of it takes arguments of these names.

    Else why not, and how to get it.
    """
    try:
        imported = importlib.import_module(module)
    except Exception as error:  # a GPU package may fail in any way on the wrong machine
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        what = f"needs the module {module!r}, which "
        if _installed(module):
            return Refusal(f"{what}is installed but does not import ({cause})", missing=True)
        return Refusal(
            f"{what}does not import ({cause}): pip install 'magi-world[{extra}]'", missing=True
        )
    if function:
        known = inspect.signature(getattr(imported, function, lambda: None)).parameters
        if lacking := [name for name in takes if name not in known]:
            return Refusal(
                f"needs a {module}.{function} that takes {', '.join(lacking)}, this one is of "
                f"another version: pip install 'magi-world[{extra}]'",
                missing=True,
            )
    return None


def _installed(module: str) -> bool:
    """Whether the package of a module is there at all."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False
