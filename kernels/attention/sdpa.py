"""Attention through torch's scaled_dot_product_attention, one call per shape of segment.

Rows that see the same number of keys are gathered into one batch, so a mask of a thousand slices
costs a handful of calls, and no mask of the size of the sequence is built.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from magi_world.kernels.attention.slices import AttnSlices, Segment

# Shape suffixes: B segments in a group, T tokens, H query heads, G key heads, D channels.


@dataclass(frozen=True, eq=False)
class _Group:
    """Segments of one shape: B of them, `num_queries` rows and `num_keys` keys each."""

    num_queries: int
    num_keys: int
    count: int
    q_start: int | None
    """first row when the rows of the segments follow each other, else None"""
    q_rows: Tensor
    k_start: int | None
    k_rows: Tensor
    mask: Tensor | None
    """None, or booleans `[B, 1, num_queries or 1, num_keys]`"""
    dead: Tensor | None
    """None, or booleans `[B, num_queries]`: rows that see no key"""


def _contiguous(rows: NDArray[np.int64]) -> int | None:
    first = int(rows[0]) if rows.size else 0
    return first if np.array_equal(rows, np.arange(first, first + rows.size)) else None


def _key_rows(segment: Segment, key_block: int | None) -> NDArray[np.int64]:
    """Key rows that the segment works on: its block, or all rows between its first and last."""
    if key_block is not None:
        block = segment.slices[0][2] // key_block
        return np.arange(block * key_block, (block + 1) * key_block)
    return np.unique(np.concatenate([np.arange(row[2], row[3]) for row in segment.slices]))


def _segment_mask(segment: Segment, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the keys each row sees, `[rows, keys]`; one row when all rows are alike."""
    left, right = segment.intervals()
    if segment.full:
        left, right = left[:, :1], right[:, :1]
    inside = (keys >= left[..., None]) & (keys < right[..., None])  # [slices, rows, keys]
    seen: NDArray[np.bool_] = np.logical_or.reduce(inside, axis=0)
    return seen


@torch.inference_mode(False)  # kept with the mask, which training may use next
def _plan(slices: AttnSlices, device: torch.device) -> list[_Group]:
    """Group the segments of a mask by shape."""
    collected: dict[tuple[int, int, bool], list[tuple[Segment, NDArray[np.int64]]]] = {}
    for segment in slices.segments:
        keys = _key_rows(segment, slices.key_block)
        shape = (segment.end - segment.start, keys.size, segment.full)
        collected.setdefault(shape, []).append((segment, keys))
    groups = []
    for (num_queries, num_keys, full), members in collected.items():
        q_rows = np.concatenate([np.arange(s.start, s.end) for s, _ in members])
        k_rows = np.concatenate([keys for _, keys in members])
        mask = dead = None
        if not full or slices.key_block is not None:
            seen = np.stack([_segment_mask(s, keys) for s, keys in members])
            none_seen = ~seen.any(axis=-1)
            if none_seen.any():
                # let such a row look at its first key, its output is set to zero afterwards
                seen[..., 0] |= none_seen
                dead = torch.from_numpy(
                    np.broadcast_to(none_seen, (len(members), num_queries)).copy()
                ).to(device)
            mask = torch.from_numpy(seen[:, None]).to(device)
        groups.append(
            _Group(
                num_queries, num_keys, len(members),
                _contiguous(q_rows), torch.from_numpy(q_rows).to(device),
                _contiguous(k_rows), torch.from_numpy(k_rows).to(device),
                mask, dead,
            )
        )  # fmt: skip
    return groups


def _take(x_THD: Tensor, start: int | None, rows: Tensor, count: int) -> Tensor:
    """Rows of a group as `[B, heads, rows, D]`, a view where they follow each other."""
    taken = x_THD.index_select(0, rows) if start is None else x_THD[start : start + rows.numel()]
    grouped: Tensor = taken.unflatten(0, (count, -1)).transpose(1, 2)
    return grouped


def _group_attention(
    q_BHTD: Tensor, k_BHTD: Tensor, v_BHTD: Tensor, mask: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Output `[B, H, rows, D]` and log-sum-exp `[B, H, rows]` of one group."""
    if q_BHTD.device.type == "cpu":
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape, dtype=q_BHTD.dtype).masked_fill_(~mask, -math.inf)
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_BHTD, k_BHTD, v_BHTD, 0.0, False, attn_mask=bias, scale=scale
        )
        return out, lse
    out = F.scaled_dot_product_attention(q_BHTD, k_BHTD, v_BHTD, attn_mask=mask, scale=scale)
    with torch.no_grad():  # the public function keeps its log-sum-exp to itself
        scores = (q_BHTD.float() @ k_BHTD.float().transpose(-1, -2)) * scale
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        lse = scores.logsumexp(-1)
    return out, lse


def attention_sdpa(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, slices: AttnSlices, *, scale: float
) -> tuple[Tensor, Tensor]:
    """See :func:`magi_world.kernels.attention.attention`.

    The gradient reaches q, k and v through the output; ``lse`` carries none.
    """
    T, H, D = q_THD.shape
    # called directly, the CPU kernel reads channels as neighbours whatever their stride is
    q_THD, k_TGD, v_TGD = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (q_THD, k_TGD, v_TGD)
    )
    key = f"sdpa {q_THD.device}"
    plans: dict[str, Any] = slices.plans
    if key not in plans:
        plans[key] = _plan(slices, q_THD.device)
    groups: list[_Group] = plans[key]
    share = H // k_TGD.shape[1]
    lse_dtype = torch.float64 if q_THD.dtype == torch.float64 else torch.float32
    parts_out, parts_lse = [], []
    for group in groups:
        q = _take(q_THD, group.q_start, group.q_rows, group.count)
        k = _take(k_TGD, group.k_start, group.k_rows, group.count)
        v = _take(v_TGD, group.k_start, group.k_rows, group.count)
        if share > 1 and (group.mask is None or group.mask.shape[-2] == 1):
            # all rows see the same keys: heads that share keys become more rows, no key is copied
            folded = q.unflatten(1, (-1, share)).flatten(2, 3)
            out, lse = _group_attention(folded, k, v, group.mask, scale)
            out = out.unflatten(2, (share, -1)).flatten(1, 2)
            lse = lse.unflatten(2, (share, -1)).flatten(1, 2)
        else:
            if share > 1:
                k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
            out, lse = _group_attention(q, k, v, group.mask, scale)
        if group.dead is not None:
            out = out.masked_fill(group.dead[:, None, :, None], 0.0)
            lse = lse.masked_fill(group.dead[:, None], -math.inf)
        parts_out.append(out.transpose(1, 2).reshape(-1, H, D))
        parts_lse.append(lse.detach().to(lse_dtype).transpose(1, 2).reshape(-1, H))
    covered = sum(group.q_rows.numel() for group in groups)
    if len(groups) == 1 and covered == T and groups[0].q_start == 0:
        return parts_out[0], parts_lse[0]
    rows = "sdpa rows " + str(q_THD.device)
    if rows not in plans:
        with torch.inference_mode(False):
            none = torch.empty(0, dtype=torch.int64, device=q_THD.device)
            plans[rows] = torch.cat([none, *(group.q_rows for group in groups)])
    order: Tensor = plans[rows]
    out_THD = q_THD.new_zeros(T, H, D)
    lse_TH = torch.full((T, H), -math.inf, dtype=lse_dtype, device=q_THD.device)
    if parts_out:
        out_THD = out_THD.index_copy(0, order, torch.cat(parts_out))
        lse_TH.index_copy_(0, order, torch.cat(parts_lse))
    return out_THD, lse_TH
