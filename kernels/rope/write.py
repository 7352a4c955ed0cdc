"""Norm, rotary embedding and the write into the KV cache: changes the cache, so inference only.

It refuses arguments that need a gradient; training uses
:func:`magi_world.kernels.rope.norm_rotary`.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from magi_world.kernels.device import Backend, chosen
from magi_world.kernels.registration import register
from magi_world.kernels.rope.dispatch import check_rotary
from magi_world.kernels.rope.reference import norm_rotary_reference

# Shape suffixes: T packed tokens, H query heads, K key heads, D head width, N rows of the cache,
# R rotated pairs of channels.


class Norm(NamedTuple):
    """A norm over a head: the stored weight `[D]`, one less than its factor, and the bias `[D]`."""

    weight: Tensor
    bias: Tensor


class CacheRows(NamedTuple):
    """Where the keys and values of a forward go."""

    keys: Tensor
    """`[N, K, D]`, written in place"""
    values: Tensor
    """`[N, K, D]`, written in place"""
    rows: Tensor
    """int64 `[T]`: the row of every token, no row twice, all below N: a kernel does not look"""


def writes_fused(q_THD: Tensor) -> bool:
    """Whether one kernel does it all here: on a CUDA device, without gradients."""
    if not q_THD.is_cuda or torch.is_grad_enabled():
        return False
    return chosen("auto", q_THD) == "triton"


def norm_rotary_write(
    q_THD: Tensor,
    k_TKD: Tensor,
    v_TKD: Tensor,
    norms: tuple[Norm, Norm],
    rotary: tuple[Tensor, Tensor],
    eps: float,
    cache: CacheRows,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """Norm and rotate queries and keys; write keys and values into the cache. Inference only.

    Args:
        q_THD: queries `[T, H, D]`.
        k_TKD: keys `[T, K, D]`.
        v_TKD: values `[T, K, D]`, written as they are.
        norms: of the queries and of the keys.
        rotary: cosines and sines `[T, R]` each.
        eps: of both norms.
        cache: where keys and values go.
        backend: ``triton`` is one kernel, ``auto`` takes it on CUDA devices.

    Returns:
        The queries as the attention reads them `[T, H, D]`; it shares no memory with anything.

    Raises:
        ValueError: shapes, dtypes or strides that do not fit together, an unknown backend, or
            ``triton`` where it cannot run.
        RuntimeError: an argument needs a gradient.
    """
    check_rotary(q_THD, norms[0], rotary)
    check_rotary(k_TKD, norms[1], rotary)
    T, K, D = k_TKD.shape
    if v_TKD.shape != k_TKD.shape or D != q_THD.shape[2] or cache.rows.shape != (T,):
        raise ValueError(
            f"q {tuple(q_THD.shape)}, k {tuple(k_TKD.shape)}, v {tuple(v_TKD.shape)}, rows "
            f"{tuple(cache.rows.shape)}: expected [T, H, D], [T, K, D], [T, K, D] and [T]"
        )
    if not cache.keys.shape[1:] == cache.values.shape[1:] == (K, D):
        raise ValueError(
            f"cache {tuple(cache.keys.shape)} and {tuple(cache.values.shape)}: expected "
            f"[N, {K}, {D}]"
        )
    if not k_TKD.dtype == v_TKD.dtype == cache.keys.dtype == cache.values.dtype:
        raise ValueError(
            f"k {k_TKD.dtype}, v {v_TKD.dtype}, cache {cache.keys.dtype} and "
            f"{cache.values.dtype}: expected one dtype"
        )
    if cache.keys.stride(2) != 1 or cache.values.stride(2) != 1:
        raise ValueError(
            f"cache with strides {cache.keys.stride()} and {cache.values.stride()}: a head's "
            "channels must lie side by side"
        )
    result: Tensor = OP(
        q_THD, k_TKD, v_TKD, *norms[0], *norms[1], *rotary, cache.rows, eps, cache.keys,
        cache.values, backend,
    )  # fmt: skip
    return result


def _forward(
    q: Tensor, k: Tensor, v: Tensor, q_weight: Tensor, q_bias: Tensor, k_weight: Tensor,
    k_bias: Tensor, cos: Tensor, sin: Tensor, rows: Tensor, eps: float, keys: Tensor,
    values: Tensor, backend: str,
) -> Tensor:  # fmt: skip
    if chosen(backend, q, k, keys, q_weight, cos) == "triton":
        from magi_world.kernels.rope.triton_ops import norm_rotary_write_triton

        norms = Norm(q_weight, q_bias), Norm(k_weight, k_bias)
        cache = CacheRows(keys, values, rows)
        return norm_rotary_write_triton(q, k, v, norms, (cos, sin), eps, cache)
    keys.index_copy_(0, rows, norm_rotary_reference(k, k_weight, k_bias, cos, sin, eps))
    values.index_copy_(0, rows, v)
    return norm_rotary_reference(q, q_weight, q_bias, cos, sin, eps)


def _fake(q: Tensor, *rest: Any) -> Tensor:
    return q.new_empty(q.shape)


OP = register(
    "norm_rotary_write(Tensor q, Tensor k, Tensor v, Tensor q_weight, Tensor q_bias, "
    "Tensor k_weight, Tensor k_bias, Tensor cos, Tensor sin, Tensor rows, float eps, "
    "Tensor(a!) keys, Tensor(b!) values, str backend) -> Tensor",
    _forward,
    _fake,
    inference_only="writes to its arguments",
)
