"""Launches the fused norm and rotary embedding, with and without the write into the cache."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from magi_world.kernels.rope.write import CacheRows, Norm

TILE = 2048
"""elements that a program works on"""


def launch_shape(width: int) -> tuple[int, int]:
    """Tokens of a program and padded head width."""
    padded = 1 << (width - 1).bit_length()
    return max(1, min(64, TILE // padded)), padded


def _plain(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def norm_rotary_triton(
    x_THD: Tensor, weight_D: Tensor, bias_D: Tensor, cos_TR: Tensor, sin_TR: Tensor, eps: float
) -> Tensor:
    """See :func:`magi_world.kernels.rope.norm_rotary`."""
    from magi_world.kernels.rope.triton_kernels import norm_rotary_kernel

    x = _plain(x_THD)
    T, H, D = x.shape
    out = torch.empty(T, H, D, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    rows, padded = launch_shape(D)
    with torch.cuda.device_of(x):
        norm_rotary_kernel[(-(-T // rows), H)](
            x, out, weight_D.contiguous(), bias_D.contiguous(), cos_TR.contiguous(),
            sin_TR.contiguous(), x.stride(0), x.stride(1), T, H, eps,
            R=cos_TR.shape[-1], D=D, BD=padded, ROWS=rows, num_warps=4,
        )  # fmt: skip
    return out


def norm_rotary_write_triton(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    norms: "tuple[Norm, Norm]",
    rotary: tuple[Tensor, Tensor],
    eps: float,
    cache: "CacheRows",
) -> Tensor:
    """See :func:`magi_world.kernels.rope.norm_rotary_write`."""
    from magi_world.kernels.rope.triton_kernels import norm_rotary_write_kernel

    q, k, v = _plain(q_THD), _plain(k_TKD), _plain(v_TKD)
    T, H, D = q.shape
    K = k.shape[1]
    out = torch.empty(T, H, D, dtype=q.dtype, device=q.device)
    if not T:
        return out
    small: list[Any] = [x.contiguous() for x in (*norms[0], *norms[1], *rotary, cache.rows)]
    rows, padded = launch_shape(D)
    with torch.cuda.device_of(q):
        norm_rotary_write_kernel[(-(-T // rows), H + 2 * K)](
            q, k, v, out, cache.keys, cache.values, *small,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
            *cache.keys.stride()[:2], *cache.values.stride()[:2], T, H, K, eps,
            R=rotary[0].shape[-1], D=D, BD=padded, ROWS=rows, num_warps=4,
        )  # fmt: skip
    for written in (cache.keys, cache.values):  # as torch's own operations tell autograd
        torch.autograd.graph.increment_version(written)
    return out
