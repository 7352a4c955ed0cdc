"""The fused operation: chooses its form, and is registered with torch."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from magi_world.kernels.device import Backend, chosen
from magi_world.kernels.registration import register
from magi_world.kernels.swiglu.reference import silu_multiply_reference


def silu_multiply(h: Tensor, *, backend: Backend = "auto") -> Tensor:
    """``SiLU(first half) * second half`` of the last dimension, with one rounding.

    Args:
        h: `[..., 2 * F]`.
        backend: ``triton`` is one kernel forwards and one backwards, ``auto`` takes it on CUDA
            devices.

    Returns:
        `[..., F]` in the dtype of h.

    Raises:
        ValueError: a last dimension that has no two halves, an unknown backend, or ``triton``
            where it cannot run.
    """
    if h.shape[-1] % 2:
        raise ValueError(f"{tuple(h.shape)}: the last dimension has no two halves")
    if chosen(backend, h) == "reference":
        return silu_multiply_reference(h)
    result: Tensor = OP(h, backend)
    return result


def _forward(h: Tensor, backend: str) -> Tensor:
    if chosen(backend, h) == "reference":
        return silu_multiply_reference(h)
    from magi_world.kernels.swiglu.triton_ops import silu_multiply_triton

    return silu_multiply_triton(h)


def _fake(h: Tensor, backend: str) -> Tensor:
    return h.new_empty((*h.shape[:-1], h.shape[-1] // 2))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, ctx.backend = inputs
    ctx.save_for_backward(h)


def _gradient(h: Tensor, d_out: Tensor, backend: str) -> Tensor:
    if chosen(backend, h, d_out) == "triton":
        from magi_world.kernels.swiglu.triton_ops import silu_multiply_backward_triton

        return silu_multiply_backward_triton(h, d_out)
    gate, up = h.to(torch.promote_types(h.dtype, torch.float32)).chunk(2, dim=-1)
    wide = d_out.to(gate.dtype)
    share = gate.sigmoid()
    slope = share * (1 + gate * (1 - share))
    return torch.cat([wide * up * slope, wide * F.silu(gate)], dim=-1).to(h.dtype)


def _fake_gradient(h: Tensor, d_out: Tensor, backend: str) -> Tensor:
    return h.new_empty(h.shape)


BACKWARD = register(
    "silu_multiply_backward(Tensor h, Tensor d_out, str backend) -> Tensor",
    _gradient,
    _fake_gradient,
)


def _backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None]:
    return BACKWARD(*ctx.saved_tensors, d_out, ctx.backend), None


OP = register(
    "silu_multiply(Tensor h, str backend) -> Tensor",
    _forward,
    _fake,
    setup_context=_setup,
    backward=_backward,
)
