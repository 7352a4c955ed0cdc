"""The obvious attention: one dense mask, one softmax. Slow; every other backend is judged by it."""

import math

import torch
from torch import Tensor

from magi_world.kernels.attention.slices import AttnSlices

# Shape suffixes: T packed tokens (Tq queries, Tk keys), H query heads, G key heads, D channels.


def dense_mask(slices: AttnSlices, num_queries: int, num_keys: int) -> Tensor:
    """The mask as booleans `[Tq, Tk]`, True where a query sees a key: where some slice shows it."""
    mask = torch.zeros(num_queries, num_keys, dtype=torch.bool)
    k = torch.arange(num_keys)
    for q_start, q_end, k_start, k_end, kind in slices.rows:
        q = torch.arange(q_start, q_end)[:, None]
        first, end = torch.full_like(q, k_start), torch.full_like(q, k_end)  # full: all of them
        if kind in (1, 3):  # causal: the last row sees the last key, each row before it one less
            end = k_end - (q_end - 1 - q)
        if kind in (2, 3):  # inverse causal: each row sees from one key further on
            first = k_start + (q - q_start)
        mask[q_start:q_end] |= (first <= k) & (k < end)
    return mask


def attention_reference(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    slices: AttnSlices,
    *,
    scale: float,
    softcap: float = 0.0,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`magi_world.kernels.attention.attention`. Computes in float32, or float64."""
    compute = torch.float64 if q_THD.dtype == torch.float64 else torch.float32
    q, k, v = (x.to(compute) for x in (q_THD, k_TGD, v_TGD))
    share = q.shape[1] // k.shape[1]  # query head j reads key head j // share
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    scores_HTT = torch.einsum("qhd,khd->hqk", q, k) * scale
    if softcap:
        scores_HTT = softcap * torch.tanh(scores_HTT / softcap)
    mask = dense_mask(slices, q.shape[0], k.shape[0]).to(q.device)
    scores_HTT = scores_HTT.masked_fill(~mask, -math.inf)
    logits = scores_HTT
    if sink is not None:  # [S, H] or [H]: logits without a value, neither scaled nor capped
        extra = sink.to(compute).reshape(-1, q.shape[1]).T[:, None]  # [H, 1, S]
        logits = torch.cat([scores_HTT, extra.expand(-1, q.shape[0], -1)], dim=-1)
    # a row that sees nothing has output 0 and lse -inf; computed with lse 0, exp(-inf - 0) is 0,
    # and no gradient is exp(-inf - -inf)
    nothing = (logits == -math.inf).all(-1)
    lse_HT = logits.masked_fill(nothing[..., None], 0.0).logsumexp(-1).masked_fill(nothing, 0.0)
    out = torch.einsum("hqk,khd->qhd", torch.exp(scores_HTT - lse_HT[..., None]), v)
    return out.to(q_THD.dtype), lse_HT.masked_fill(nothing, -math.inf).T
