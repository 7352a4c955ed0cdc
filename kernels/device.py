"""What a device can do, asked once.

Triton starts a kernel on the current CUDA device, whatever device its tensors are on: every launch
stands in ``torch.cuda.device_of(x)``, which does nothing for tensors on a CPU.
"""

import importlib
import os
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "reference", "triton"]
"""forms of a fused operation; ``auto`` takes Triton on a CUDA device, the reference elsewhere"""
BACKENDS: tuple[str, ...] = ("auto", "reference", "triton")

_TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@lru_cache(maxsize=64)
def capability(device: torch.device) -> int:
    """Compute capability of a CUDA device as 10 * major + minor, 0 elsewhere."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def interpreted() -> bool:
    """Whether Triton kernels run in triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@lru_cache(maxsize=1)
def import_error() -> str | None:
    """None when triton imports, else why it does not."""
    try:
        importlib.import_module("triton")
    except Exception as error:  # a GPU package may fail in any way on the wrong machine
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def refuses_triton(*tensors: Tensor, least: int = 80) -> str | None:
    """Why Triton kernels cannot take these tensors, or None.

    Args:
        tensors: what a kernel reads; the first decides about the device.
        least: oldest compute capability, 80 for sm_80.
    """
    device = tensors[0].device
    if device.type == "cpu":
        if not interpreted():
            return "needs a CUDA device (or TRITON_INTERPRET=1 set before triton is first imported)"
    elif capability(device) < least:
        return f"needs sm_{least} or newer, not {device.type} sm_{capability(device)}"
    for x in tensors:
        if x.is_floating_point() and x.dtype not in _TRITON_DTYPES and x.element_size() > 1:
            return f"takes float32, float16 and bfloat16, not {x.dtype}"
        if x.dtype == torch.bfloat16 and device.type == "cpu":
            return "is wrong in bfloat16 in triton's interpreter"
    missing = import_error()
    return f"needs triton, which does not import ({missing})" if missing else None


def chosen(backend: str, *tensors: Tensor, least: int = 80) -> str:
    """``triton`` or ``reference`` for a fused operation.

    Args:
        backend: as the caller gave it.
        tensors: see :func:`refuses_triton`.
        least: see :func:`refuses_triton`.

    Raises:
        ValueError: an unknown backend, or ``triton`` where it cannot run.
    """
    if backend == "reference" or (backend == "auto" and not tensors[0].is_cuda):
        return "reference"
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {BACKENDS}")
    if torch.compiler.is_compiling():
        return "triton"  # only means the registered operation, which asks again when it runs
    why_not = refuses_triton(*tensors, least=least)
    if why_not is None:
        return "triton"
    if backend == "triton":
        raise ValueError(f"backend 'triton' {why_not}; take 'reference' or 'auto'")
    return "reference"
