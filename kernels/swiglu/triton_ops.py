"""Launches the fused SiLU-and-multiply, forwards and backwards."""

import torch
from torch import Tensor

BLOCK = 1024
"""channels that a program works on"""


def silu_multiply_triton(h: Tensor) -> Tensor:
    """See :func:`magi_world.kernels.swiglu.silu_multiply`."""
    from magi_world.kernels.swiglu.triton_kernels import silu_multiply_kernel

    half = h.shape[-1] // 2
    rows = h.reshape(-1, 2 * half).contiguous()
    out = torch.empty(len(rows), half, dtype=h.dtype, device=h.device)
    if out.numel():
        grid = (len(rows), -(-half // BLOCK))
        with torch.cuda.device_of(h):
            silu_multiply_kernel[grid](rows, out, half, BLOCK=BLOCK, num_warps=4)
    return out.view(*h.shape[:-1], half)


def silu_multiply_backward_triton(h: Tensor, d_out: Tensor) -> Tensor:
    """Gradient of h `[..., 2 * F]` from that of the result `[..., F]`."""
    from magi_world.kernels.swiglu.triton_kernels import silu_multiply_backward_kernel

    half = h.shape[-1] // 2
    rows = h.reshape(-1, 2 * half).contiguous()
    d_rows = d_out.reshape(-1, half).contiguous()
    d_h = torch.empty(rows.shape, dtype=h.dtype, device=h.device)
    if d_h.numel():
        grid = (len(rows), -(-half // BLOCK))
        with torch.cuda.device_of(h):
            silu_multiply_backward_kernel[grid](rows, d_rows, d_h, half, BLOCK=BLOCK, num_warps=4)
    return d_h.view(h.shape)
