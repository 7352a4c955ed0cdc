"""One autograd function for every backend that brings a backward of its own.

With s the capped scores and t the sink, lse = ln(sum_k exp s + exp t) and P = exp(s - lse). A
gradient of lse only changes the row term delta (FlashAttention 2, MagiAttention):

    delta = sum_d out * d_out - d_lse     dS = P * (d_out V' - delta)     d_V = P' d_out
    d_Q = scale * dS K     d_K = scale * dS' Q     d_t = -sum_q exp(t - lse) * delta
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Shape suffixes: T packed tokens (queries or keys), H query heads, G key heads, D channels.


class Settings(NamedTuple):
    """What a kernel is told beside its tensors."""

    scale: float
    softcap: float
    plan: Any
    """what the backend derived from the mask"""


class Kernel(NamedTuple):
    """A forward and its backward."""

    forward: Callable[[Tensor, Tensor, Tensor, Tensor | None, Settings], tuple[Tensor, Tensor]]
    """(q, k, v, sink `[H]` or None, settings) -> (out `[Tq, H, D]`, lse `[Tq, H]`)"""
    backward: Callable[
        [Tensor, Tensor | None, Tensor, Tensor, Tensor, Tensor, Tensor, Settings],
        tuple[Tensor, Tensor, Tensor],
    ]
    """(d_out, d_lse or None, q, k, v, out, lse, settings) -> (d_q, d_k, d_v)"""


def row_delta(d_out_THD: Tensor, d_lse_TH: Tensor | None, out_THD: Tensor) -> Tensor:
    """The row term of the backward `[T, H]`, in the accumulating dtype."""
    wide = torch.promote_types(out_THD.dtype, torch.float32)
    delta = (out_THD.to(wide) * d_out_THD.to(wide)).sum(-1)
    return delta if d_lse_TH is None else delta - d_lse_TH


def joined_sink(sink: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
    """The sinks `[S, H]` or `[H]` of every head as one, their log-sum-exp `[H]`. Differentiable.

    Args:
        sink: logits; a head whose sinks are all -inf, or that has none, gets -inf.
        num_heads: query heads H.
        dtype: of the result.
    """
    logits = sink.to(dtype).reshape(-1, num_heads)
    none = (logits == -math.inf).all(0)  # its gradient would be exp(-inf - -inf)
    return logits.masked_fill(none, 0.0).logsumexp(0).masked_fill(none, -math.inf)


def sink_gradient(
    sink_H: Tensor, lse_TH: Tensor, d_out_THD: Tensor, d_lse_TH: Tensor | None, out_THD: Tensor
) -> Tensor:
    """Gradient of the sink `[H]`; lse is the one with the sink in it."""
    # lse is -inf only where the sink is too, and then it takes no share: exp(-inf - 0)
    lse_TH = lse_TH.masked_fill(lse_TH == -math.inf, 0.0)
    share = torch.exp(sink_H - lse_TH) * row_delta(d_out_THD, d_lse_TH, out_THD)
    return -share.sum(0).to(sink_H.dtype)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sink_H: Tensor | None,
        kernel: Kernel,
        settings: Settings,
    ) -> tuple[Tensor, Tensor]:
        out, lse = kernel.forward(q, k, v, sink_H, settings)
        ctx.save_for_backward(q, k, v, sink_H, out, lse)
        ctx.kernel, ctx.settings = kernel, settings
        ctx.set_materialize_grads(False)  # an lse that nobody uses costs nothing
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, sink_H, out, lse = ctx.saved_tensors
        if d_out is None and d_lse is None:
            return None, None, None, None, None, None
        d_out = torch.zeros_like(out) if d_out is None else d_out
        if d_lse is not None:  # the lse of a row that sees nothing is constant
            d_lse = d_lse.masked_fill(lse == -math.inf, 0.0)
        d_q, d_k, d_v = ctx.kernel.backward(d_out, d_lse, q, k, v, out, lse, ctx.settings)
        d_sink = None
        if sink_H is not None and ctx.needs_input_grad[3]:
            d_sink = sink_gradient(sink_H, lse, d_out, d_lse, out)
        return d_q, d_k, d_v, d_sink, None, None


def run(
    kernel: Kernel,
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    sink: Tensor | None,
    settings: Settings,
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp; differentiable where gradients are asked for.

    Args:
        kernel: the backend.
        q_THD: queries; k_TGD, v_TGD: keys and values.
        sink: logits `[S, H]` or `[H]`, or None.
        settings: see :class:`Settings`.
    """
    if sink is not None:
        wide = torch.promote_types(q_THD.dtype, torch.float32)
        sink = joined_sink(sink, q_THD.shape[1], wide)
    if torch.is_grad_enabled() and (
        q_THD.requires_grad
        or k_TGD.requires_grad
        or v_TGD.requires_grad
        or (sink is not None and sink.requires_grad)
    ):
        result: tuple[Tensor, Tensor] = _Attention.apply(  # type: ignore[no-untyped-call]
            q_THD, k_TGD, v_TGD, sink, kernel, settings
        )
        return result
    return kernel.forward(q_THD, k_TGD, v_TGD, sink, settings)


def add_sink(out_THD: Tensor, lse_TH: Tensor, sink_H: Tensor) -> tuple[Tensor, Tensor]:
    """Let a sink take its share of the probability after the fact.

    lse' = ln(exp lse + exp t) and out' = out * exp(lse - lse'). Differentiable.
    """
    sink_H = sink_H.to(lse_TH.dtype)
    # neither a key nor a sink: lse' stays -inf, and neither value nor gradient may be -inf - -inf
    nothing = (lse_TH == -math.inf) & (sink_H == -math.inf)
    lse_TH = lse_TH.masked_fill(nothing, 0.0)
    total = torch.logaddexp(lse_TH, sink_H)
    out = (out_THD * torch.exp(lse_TH - total)[..., None]).to(out_THD.dtype)
    return out, total.masked_fill(nothing, -math.inf)
