"""Launches the fused gate, post-norm and residual."""

import torch
from torch import Tensor

TILE = 4096
"""elements that a program works on, at least one row"""


def launch_shape(width: int) -> tuple[int, int, int]:
    """Rows of a program, padded width and warps."""
    padded = 1 << (width - 1).bit_length()
    rows = max(1, min(16, TILE // padded))
    return rows, padded, 4 if rows * padded <= 4096 else 8 if padded <= 8192 else 16


def gate_norm_residual_triton(
    x_TE: Tensor, branch_TE: Tensor, gate_GE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float
) -> Tensor:
    """See :func:`magi_world.kernels.modulate.gate_norm_residual`."""
    from magi_world.kernels.modulate.triton_kernels import gate_norm_residual_kernel

    x, branch, gate = (
        y if y.stride(-1) == 1 else y.contiguous() for y in (x_TE, branch_TE, gate_GE)
    )
    T, E = x.shape
    out = torch.empty(T, E, dtype=x.dtype, device=x.device)
    if not T:
        return out
    rows, padded, warps = launch_shape(E)
    with torch.cuda.device_of(x):
        gate_norm_residual_kernel[(-(-T // rows),)](
            x, branch, gate, weight_E.contiguous(), bias_E.contiguous(), out,
            x.stride(0), branch.stride(0), gate.stride(0), T, T // gate.shape[0], eps,
            E=E, BE=padded, ROWS=rows, num_warps=warps,
        )  # fmt: skip
    return out
