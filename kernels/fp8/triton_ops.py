"""Launches the FP8 kernels; they need FP8 units, sm_89 or newer.

Triton's interpreter is no substitute: its rounding to e4m3 is wrong.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from magi_world.kernels.device import capability, import_error

LEAST_CAPABILITY = 89
"""Ada and Hopper are the first with FP8 units"""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""of activations and results"""

BLOCK = 1024
"""channels that a program of the quantiser works on"""


class MatmulConfig(NamedTuple):
    """How the product is compiled: rows, columns and inner size of a tile, warps, stages."""

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int


def matmul_config(rows: int, capability: int) -> MatmulConfig:
    """Tile sizes that keep a tile in registers and shared memory without spilling.

    Args:
        rows: of the activations M; few rows take a lower tile.
        capability: of the device, 89 for sm_89.
    """
    big = capability >= 90  # more shared memory and larger matrix instructions
    if rows <= 64:
        return MatmulConfig(64, 64, 128, 4, 3)
    return MatmulConfig(128, 128, 128, 8, 3) if big else MatmulConfig(128, 64, 128, 8, 3)


def refuses(device: torch.device, *dtypes: torch.dtype) -> str | None:
    """Why the kernels cannot run, or None.

    Args:
        device: where.
        dtypes: of activations or results.
    """
    if capability(device) < LEAST_CAPABILITY:
        found = f"sm_{capability(device)}" if device.type == "cuda" else device.type
        return f"needs FP8 units, sm_{LEAST_CAPABILITY} or newer, not {found}"
    wrong = [dtype for dtype in dtypes if dtype not in DTYPES]
    if wrong:
        return f"takes float32, float16 and bfloat16, not {wrong[0]}"
    missing = import_error()
    return f"needs triton, which does not import ({missing})" if missing else None


def quantise_triton(x: Tensor, scale: Tensor) -> Tensor:
    """See :func:`magi_world.kernels.fp8.quantise`."""
    from magi_world.kernels.fp8.triton_kernels import quantise_kernel

    K = x.shape[-1]
    rows = x.reshape(-1, K).contiguous()
    out = torch.empty(rows.shape, dtype=torch.float8_e4m3fn, device=x.device)
    if out.numel():
        flat = scale.flatten().float().contiguous()
        with torch.cuda.device_of(x):
            quantise_kernel[(len(rows), -(-K // BLOCK))](
                rows, flat, out, K, PER_CHANNEL=flat.numel() > 1, BLOCK=BLOCK, num_warps=4
            )
    return out.view(x.shape)


def matmul_triton(
    q_MK: Tensor, w_NK: Tensor, scales: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Tensor:
    """See :func:`magi_world.kernels.fp8.matmul`."""
    from magi_world.kernels.fp8.triton_kernels import scaled_matmul_kernel

    q, w = (y if y.stride(-1) == 1 else y.contiguous() for y in (q_MK, w_NK))
    (M, K), N = q.shape, w.shape[0]
    out = torch.empty(M, N, dtype=dtype, device=q.device)
    if not out.numel():
        return out
    config = matmul_config(M, capability(q.device))
    grid = (-(-M // config.rows) * -(-N // config.columns),)
    with torch.cuda.device_of(q):
        scaled_matmul_kernel[grid](
            q, w, scales[0].float(), scales[1].float(), out, M, N, K, q.stride(0), w.stride(0),
            BM=config.rows, BN=config.columns, BK=config.inner, GROUP=8,
            num_warps=config.warps, num_stages=config.stages,
        )  # fmt: skip
    return out
