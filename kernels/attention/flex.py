"""Attention through torch's FlexAttention: compiled on CUDA, forward only and eager on a CPU.

The block mask comes from our tile lists, not from evaluating every cell; inside a partial tile the
bounds of each row decide. They are data, so another mask of as many intervals compiles nothing.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from magi_world.kernels.attention.autograd import add_sink, joined_sink
from magi_world.kernels.attention.call import Call, Refusal
from magi_world.kernels.attention.slices import AttnSlices
from magi_world.kernels.attention.tiles import padded, tile_lists

BLOCK = 128
"""rows and keys of a tile"""
MAX_WIDTH = 256
"""largest head width on CUDA: tiles of wider ones do not fit into the memory of a multiprocessor"""


def refuses(call: Call, slices: AttnSlices) -> Refusal | None:
    """Why a call cannot be taken, or None."""
    if call.device.type == "cpu" and call.needs_grad:
        return Refusal("has no backward on a CPU")
    if call.device.type not in ("cpu", "cuda"):
        return Refusal(f"does not run on {call.device.type}")
    if call.device.type == "cuda" and call.width > MAX_WIDTH:
        return Refusal(f"takes head widths up to {MAX_WIDTH} on CUDA, not {call.width}")
    if call.dtype == torch.float64 and call.device.type == "cuda":
        return Refusal("takes no float64 on CUDA")
    return None


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


@torch.inference_mode(False)  # kept with the mask, which training may use next
def _block_mask(slices: AttnSlices, shape: tuple[int, int], device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import BlockMask

    key = ("flex", shape, device)
    known = slices.plans.get(key)
    if known is None:
        lists = tile_lists(slices, shape, BLOCK, BLOCK).by_query
        tables = padded(lists, -(-shape[1] // BLOCK))
        partial_count, partial, full_count, full = (
            torch.from_numpy(table).to(device)[None, None] for table in tables
        )
        # rows that only fill up the last tile see nothing
        rows = -(-shape[0] // BLOCK) * BLOCK
        left, right = (torch.from_numpy(x).to(device) for x in slices.row_intervals(rows))

        def mask_mod(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            seen = (k >= left[0, q]) & (k < right[0, q])
            for f in range(1, left.shape[0]):
                seen = seen | ((k >= left[f, q]) & (k < right[f, q]))
            return seen

        known = BlockMask.from_kv_blocks(
            partial_count,
            partial,
            full_count,
            full,
            BLOCK_SIZE=BLOCK,
            mask_mod=mask_mod,
            seq_lengths=shape,
        )
        slices.plans[key] = known
    return known


def _call(function: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp, by either way of asking for it."""
    try:
        from torch.nn.attention.flex_attention import AuxRequest
    except ImportError:  # before torch 2.9
        result: tuple[Tensor, Tensor] = function(*args, return_lse=True, **kwargs)
        return result
    out, extra = function(*args, return_aux=AuxRequest(lse=True), **kwargs)
    return out, extra.lse


def attention_flex(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    slices: AttnSlices,
    *,
    scale: float,
    softcap: float = 0.0,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`magi_world.kernels.attention.attention`."""
    from torch.nn.attention.flex_attention import flex_attention

    wide = torch.promote_types(q_THD.dtype, torch.float32)
    T, H, _ = q_THD.shape
    if not slices.area():
        # keeps the graph, so that gradients are zeros here as everywhere
        out = torch.zeros_like(q_THD) + 0 * (q_THD.sum() + k_TGD.sum() + v_TGD.sum())
        lse = q_THD.new_full((T, H), -torch.inf, dtype=wide)
    else:
        score_mod = None
        if softcap:

            def score_mod(
                score: Tensor, b: Tensor, h: Tensor, q_index: Tensor, k_index: Tensor
            ) -> Tensor:
                return softcap * torch.tanh(score / softcap)

        q, k, v = (x.transpose(0, 1)[None] for x in (q_THD, k_TGD, v_TGD))
        function: Any = flex_attention if q.device.type == "cpu" else _compiled()
        with warnings.catch_warnings():
            # eager on a CPU is meant as a second opinion for tests: slow is fine
            warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
            out, lse = _call(
                function,
                q, k, v,
                score_mod=score_mod,
                block_mask=_block_mask(slices, (T, k_TGD.shape[0]), q.device),
                scale=scale,
                enable_gqa=H != k_TGD.shape[1],
            )  # fmt: skip
        out, lse = out[0].transpose(0, 1), lse[0].T.to(wide)
    if sink is None:
        return out, lse
    return add_sink(out, lse, joined_sink(sink, H, wide))
