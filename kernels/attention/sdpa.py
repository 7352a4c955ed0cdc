"""Attention through torch's scaled_dot_product_attention, one call per shape of segment.

Rows that see the same number of keys are gathered into one batch, so a mask of a thousand slices
costs a handful of calls; groups and blocks of rows stay so small that no mask of the size of the
sequence is built (:mod:`magi_world.kernels.attention.sdpa_plan`). On a CPU the kernels are called
directly, forward and backward: that brings the log-sum-exp, its gradient and sinks. Elsewhere the
log-sum-exp is computed beside them, by blocks of rows.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from magi_world.kernels.attention.autograd import Kernel, Settings, add_sink, joined_sink, run
from magi_world.kernels.attention.sdpa_plan import Group, Plan, plan_of
from magi_world.kernels.attention.slices import AttnSlices

SCORES = 1 << 24
"""most scores that are there at once where the log-sum-exp is computed beside torch's function"""

# Shape suffixes: B segments in a group, T tokens, H query heads, G key heads, D channels.


def _queries(x_THD: Tensor, group: Group) -> Tensor:
    """Rows of a group as `[B, heads, rows, D]`, a view where they follow each other."""
    start, size = group.q_start, group.count * group.num_queries
    taken = x_THD.index_select(0, group.q_rows) if start is None else x_THD[start : start + size]
    grouped: Tensor = taken.unflatten(0, (group.count, -1)).transpose(1, 2)
    return grouped


def _keys(x_TGD: Tensor, group: Group, rows: Tensor | None) -> Tensor:
    """Keys of a group as `[B, heads, keys, D]`, a view where they follow each other."""
    if rows is None:
        assert group.k_start is not None
        taken = x_TGD[group.k_start : group.k_start + group.count * group.num_keys]
    else:
        taken = x_TGD.index_select(0, rows)
    grouped: Tensor = taken.unflatten(0, (group.count, -1)).transpose(1, 2)
    return grouped


def _key_rows(group: Group) -> Tensor | None:
    """Which keys a group copies; None where they follow each other."""
    return group.key_rows() if group.k_start is None else None


def _fold(x_BHTD: Tensor, share: int) -> Tensor:
    """Heads that share keys as more rows, `[B, G, share * rows, D]`: no key is copied."""
    folded: Tensor = x_BHTD.unflatten(1, (-1, share)).flatten(2, 3)
    return folded


def _unfold(x_BGTD: Tensor, share: int) -> Tensor:
    heads: Tensor = x_BGTD.unflatten(2, (share, -1)).flatten(1, 2)
    return heads


def _heads(x_BGTD: Tensor, share: int) -> Tensor:
    """Keys or values once for every query head."""
    return x_BGTD.repeat_interleave(share, dim=1)


def _group_attention(
    q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """On a CPU: output `[B, H, rows, D]` and log-sum-exp `[B, H, rows]` of one group."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q_BHTD, k_BHTD, v_BHTD, 0.0, False, attn_mask=bias, scale=scale
    )
    return out, lse


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sink_H: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """On a CPU: output and log-sum-exp by the kernel that torch's function calls."""
    T, H, D = q.shape
    share = H // k.shape[1]
    plan: Plan = settings.plan
    wide = torch.promote_types(q.dtype, torch.float32)
    whole = plan.whole and plan.rows.numel() == T
    covered = plan.rows.numel() == T  # no row is in two groups
    out_THD = lse_TH = q.new_empty(0)
    if covered and not (whole and share == 1):
        out_THD, lse_TH = q.new_empty(T, H, D), q.new_empty(T, H, dtype=wide)
    elif not covered:
        out_THD = q.new_zeros(T, H, D)
        lse_TH = q.new_full((T, H), -math.inf, dtype=wide)
    for group in plan.groups:
        taken = _key_rows(group)
        q_BHTD, k_BHTD, v_BHTD = _queries(q, group), _keys(k, group, taken), _keys(v, group, taken)
        fold = share > 1 and group.alike
        if fold:
            q_BHTD = _fold(q_BHTD, share)
        elif share > 1:
            k_BHTD, v_BHTD = _heads(k_BHTD, share), _heads(v_BHTD, share)
        bias = group.bias(q.dtype)
        out, lse = _group_attention(q_BHTD, k_BHTD, v_BHTD, bias, settings.scale)
        if fold:  # views, so that what was folded is copied once, into its place
            out = out.unflatten(2, (share, -1)).permute(0, 3, 1, 2, 4)  # [B, rows, G, share, D]
            lse = lse.unflatten(2, (share, -1)).permute(0, 3, 1, 2)
        else:
            out, lse = out.transpose(1, 2), lse.transpose(1, 2)  # [B, rows, H, D]
        if group.dead is not None:
            dead = group.dead.view(*group.dead.shape, *[1] * (lse.ndim - 2))
            out, lse = out.masked_fill(dead[..., None], 0.0), lse.masked_fill(dead, -math.inf)
        if whole and share == 1:
            out_THD, lse_TH = out.reshape(T, H, D), lse.reshape(T, H).to(wide)
        elif group.q_start is None:
            out_THD.index_copy_(0, group.q_rows, out.reshape(-1, H, D))
            lse_TH.index_copy_(0, group.q_rows, lse.reshape(-1, H).to(wide))
        else:
            rows = slice(group.q_start, group.q_start + group.q_rows.numel())
            out_THD[rows].view(out.shape).copy_(out)
            lse_TH[rows].view(lse.shape).copy_(lse)
    return (out_THD, lse_TH) if sink_H is None else add_sink(out_THD, lse_TH, sink_H)


def _backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    """On a CPU: every group adds to the same gradients."""
    H, D = q.shape[1:]
    share = H // k.shape[1]
    if d_lse is not None:
        # the kernel forms sum_d out * d_out by itself: one more channel adds -d_lse to it
        nothing = torch.zeros_like(q[..., :1])
        q = torch.cat([q, nothing], -1)
        k, v = (F.pad(x, (0, 1)) for x in (k, v))
        out = torch.cat([out, -d_lse.to(out.dtype)[..., None]], -1)
        d_out = torch.cat([d_out, nothing + 1], -1)
    d_out = d_out if d_out.stride(-1) == 1 else d_out.contiguous()
    plan: Plan = settings.plan
    totals = [_Total(x) for x in (q, k, v)]
    for group in plan.groups:
        taken = _key_rows(group)
        rows = [_queries(x, group) for x in (q, d_out, out)]
        keys = [_keys(x, group, taken) for x in (k, v)]
        lse_BHT = _queries(lse[..., None], group)[..., 0]
        if group.dead is not None:  # they look at a key: exp(s - lse) has to be 0
            lse_BHT = lse_BHT.masked_fill(group.dead[:, None], math.inf)
        fold = share > 1 and group.alike
        if fold:
            rows = [_fold(x, share) for x in rows]
            lse_BHT = lse_BHT.unflatten(1, (-1, share)).flatten(2, 3)
        elif share > 1:
            keys = [_heads(x, share) for x in keys]
        dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            rows[1], rows[0], *keys, rows[2], lse_BHT, 0.0, False,
            attn_mask=group.bias(q.dtype), scale=settings.scale,
        )  # fmt: skip
        if fold:
            dq = _unfold(dq, share)
        elif share > 1:
            dk, dv = (x.unflatten(1, (-1, share)).sum(2) for x in (dk, dv))
        totals[0].add(group.q_start, group.q_rows, dq)
        totals[1].add(group.k_start, taken, dk)
        totals[2].add(group.k_start, taken, dv)
    d_q, d_k, d_v = (total.value() for total in totals)
    return d_q[..., :D], d_k[..., :D], d_v[..., :D]


class _Total:
    """A gradient that groups add to; a single part that is all of it is not copied."""

    def __init__(self, like_THD: Tensor) -> None:
        self.like = like_THD
        self.sum: Tensor | None = None

    def add(self, start: int | None, rows: Tensor | None, part_BHTD: Tensor) -> None:
        """Add what a group gives to all rows from a start, or else to these rows.

        Rows that occur twice are added twice.
        """
        part = part_BHTD.transpose(1, 2).flatten(0, 1)
        if self.sum is None and start == 0 and part.shape == self.like.shape:
            self.sum = part
            return
        if self.sum is None:
            self.sum = self.like.new_zeros(self.like.shape)
        if start is not None:
            self.sum[start : start + part.shape[0]] += part
        elif rows is not None:
            self.sum.index_add_(0, rows, part)

    def value(self) -> Tensor:
        return self.like.new_zeros(self.like.shape) if self.sum is None else self.sum


_KERNEL = Kernel(_forward, _backward)


def prepared(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, slices: AttnSlices, scale: float
) -> tuple[Kernel, Settings, tuple[Tensor, Tensor, Tensor]]:
    """On a CPU: the kernel, what it is told, and q, k and v as it reads them."""
    q, k, v = q_THD, k_TGD, v_TGD
    # called directly, the CPU kernel reads channels as neighbours whatever their stride is
    if q.stride(2) != 1 or k.stride(2) != 1 or v.stride(2) != 1:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    if q.dtype in (torch.float16, torch.bfloat16):
        q, k, v = q.float(), k.float(), v.float()
    return _KERNEL, Settings(scale, 0.0, plan_of(slices, q_THD.device)), (q, k, v)


def _lse(q_BHTD: Tensor, k_BHTD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Log-sum-exp `[B, H, rows]` from scores that are all there at once."""
    wide = torch.promote_types(q_BHTD.dtype, torch.float32)
    scores = (q_BHTD.to(wide) @ k_BHTD.to(wide).mT) * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    lse: Tensor = scores.logsumexp(-1)
    return lse


def _lse_in_blocks(q_BHTD: Tensor, k_BHTD: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The same by blocks of rows; a backward makes the scores of a block again."""
    B, H, rows, _ = q_BHTD.shape
    step = max(1, SCORES // (B * H * k_BHTD.shape[2]))
    parts = []
    for start in range(0, rows, step):
        q = q_BHTD[:, :, start : start + step]
        seen = mask if mask is None or mask.shape[2] == 1 else mask[:, :, start : start + step]
        if torch.is_grad_enabled() and (q.requires_grad or k_BHTD.requires_grad):
            part = checkpoint(_lse, q, k_BHTD, seen, scale, use_reentrant=False)
        else:
            part = _lse(q, k_BHTD, seen, scale)
        parts.append(part)
    return torch.cat(parts, -1)


def _group_elsewhere(
    q: Tensor, k: Tensor, v: Tensor, group: Group, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Output `[B, H, rows, D]` and log-sum-exp `[B, H, rows]` of one group."""
    share = q.shape[1] // k.shape[1]
    taken, mask = _key_rows(group), group.mask()
    q_BHTD = _queries(q, group)
    k_BHTD, v_BHTD = (_heads(_keys(x, group, taken), share) for x in (k, v))
    out = F.scaled_dot_product_attention(
        q_BHTD, k_BHTD, v_BHTD, attn_mask=mask, scale=settings.scale
    )
    lse = _lse_in_blocks(q_BHTD, k_BHTD, mask, settings.scale)
    if group.dead is not None:
        out = out.masked_fill(group.dead[:, None, :, None], 0.0)
        lse = lse.masked_fill(group.dead[:, None], -math.inf)
    return out, lse


def _elsewhere(
    q: Tensor, k: Tensor, v: Tensor, sink_H: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    """On other devices: torch's function, which keeps its log-sum-exp to itself."""
    T, H, D = q.shape
    plan: Plan = settings.plan
    wide = torch.promote_types(q.dtype, torch.float32)
    outs, lses = [q.new_zeros(0, H, D)], [q.new_zeros(0, H, dtype=wide)]
    for group in plan.groups:
        if torch.is_grad_enabled() and (group.left is not None or group.k_start is None):
            # masks and copies of keys are made again: all together they grow with the square
            out, lse = checkpoint(_group_elsewhere, q, k, v, group, settings, use_reentrant=False)
        else:
            out, lse = _group_elsewhere(q, k, v, group, settings)
        outs.append(out.transpose(1, 2).reshape(-1, H, D))
        lses.append(lse.transpose(1, 2).reshape(-1, H))
    out_THD = q.new_zeros(T, H, D).index_copy(0, plan.rows, torch.cat(outs))
    lse_TH = q.new_full((T, H), -math.inf, dtype=wide).index_copy(0, plan.rows, torch.cat(lses))
    return (out_THD, lse_TH) if sink_H is None else add_sink(out_THD, lse_TH, sink_H)


def attention_sdpa(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    slices: AttnSlices,
    *,
    scale: float,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`magi_world.kernels.attention.attention`.

    On a CPU half precision is computed in float32 and rounded once, because torch's kernel there
    rounds the probabilities.
    """
    if q_THD.device.type != "cpu":
        settings = Settings(scale, 0.0, plan_of(slices, q_THD.device))
        wide = torch.promote_types(q_THD.dtype, torch.float32)
        one = None if sink is None else joined_sink(sink, q_THD.shape[1], wide)
        return _elsewhere(q_THD, k_TGD, v_TGD, one, settings)
    kernel, settings, read = prepared(q_THD, k_TGD, v_TGD, slices, scale)
    out, lse = run(kernel, *read, sink, settings)
    return out if out.dtype == q_THD.dtype else out.to(q_THD.dtype), lse
