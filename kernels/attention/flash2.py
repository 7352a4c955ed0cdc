"""Attention through FlashAttention 2 (package flash-attn 2.x) for masks of packed samples.

It can express samples that follow each other, each with its own keys, all full or all causal;
windows, which the package knows too, are left to the backends that take any mask.
Rows and keys between samples become samples without keys or without rows.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from magi_world.kernels.attention.call import Call, Refusal, import_refusal
from magi_world.kernels.attention.errors import BackendError
from magi_world.kernels.attention.geometry import has_cells, join_columns
from magi_world.kernels.attention.slices import AttnSlices

MAX_WIDTH = 256
"""largest head width"""


class Samples(NamedTuple):
    """Ends of packed samples, the first entry 0."""

    q_ends: tuple[int, ...]
    k_ends: tuple[int, ...]
    causal: bool


def samples(slices: AttnSlices, shape: tuple[int, int]) -> Samples | None:
    """The mask as packed samples, or None when it is not one of those.

    Args:
        slices: the mask.
        shape: numbers of queries and keys.
    """
    rows = join_columns(row for row in slices.rows if has_cells(row))
    # a causal slice of one row is a full one
    rows = [(*row[:4], 0 if row[1] - row[0] == 1 and row[4] == 1 else row[4]) for row in rows]
    kinds = {row[4] for row in rows if row[1] - row[0] > 1}
    if not kinds <= {0} and not kinds <= {1}:
        return None
    q_ends, k_ends = [0], [0]
    for q_start, q_end, k_start, k_end, _ in [*rows, (*(shape[0],) * 2, *(shape[1],) * 2, 0)]:
        if q_start < q_ends[-1] or k_start < k_ends[-1]:
            return None
        if q_start > q_ends[-1]:  # rows without keys
            q_ends.append(q_start)
            k_ends.append(k_ends[-1])
        if k_start > k_ends[-1]:  # keys without rows
            q_ends.append(q_ends[-1])
            k_ends.append(k_start)
        if q_end > q_start:
            q_ends.append(q_end)
            k_ends.append(k_end)
    return Samples(tuple(q_ends), tuple(k_ends), kinds == {1})


def refuses(call: Call, slices: AttnSlices) -> Refusal | None:
    """Why a call cannot be taken, or None."""
    if call.device.type != "cuda" or call.capability < 80:
        return Refusal("needs a CUDA device from sm_80")
    if call.dtype not in (torch.float16, torch.bfloat16):
        return Refusal(f"takes float16 and bfloat16, not {call.dtype}")
    if call.width > MAX_WIDTH or call.width % 8:
        return Refusal(
            f"takes head widths up to {MAX_WIDTH} that are multiples of 8, not {call.width}"
        )
    if call.sink:
        return Refusal("takes no sink: that needs a gradient through lse, which it drops")
    if samples(slices, slices.extent()) is None:
        return Refusal("takes packed samples, all full or all causal, and no other mask")
    return import_refusal("flash_attn.flash_attn_interface", "flash2")


class _NoGradient(torch.autograd.Function):
    """Passes on a tensor whose gradient the package would drop without a word."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise BackendError("backend 'flash2' gives no gradient through lse; use another backend")


def attention_flash2(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    slices: AttnSlices,
    *,
    scale: float,
    softcap: float = 0.0,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor]:
    """See :func:`magi_world.kernels.attention.attention`.

    Raises:
        BackendError: in the backward, when the loss depends on the log-sum-exp.
    """
    from flash_attn import flash_attn_varlen_func

    shape = (q_THD.shape[0], k_TGD.shape[0])
    key = ("flash2", shape, q_THD.device)
    if key not in slices.plans:
        found = samples(slices, shape)
        assert found is not None  # see refuses
        ends = [
            torch.tensor(x, dtype=torch.int32, device=q_THD.device)
            for x in (found.q_ends, found.k_ends)
        ]
        longest = [max(0, 0, *x.diff().tolist()) for x in ends]
        slices.plans[key] = (*ends, *longest, found.causal)
    q_ends, k_ends, q_longest, k_longest, causal = slices.plans[key]
    out, lse, _ = flash_attn_varlen_func(
        q_THD, k_TGD, v_TGD, q_ends, k_ends, q_longest, k_longest,
        softmax_scale=scale, causal=causal, softcap=softcap, deterministic=deterministic,
        return_attn_probs=True,
    )  # fmt: skip
    lse = lse.masked_fill(lse == math.inf, -math.inf)  # its mark for rows without keys
    guarded: Tensor = _NoGradient.apply(lse.T)  # type: ignore[no-untyped-call]
    return out, guarded
