"""Attention through FlashAttention 4 (package flash-attn-4) with a mask of blocks and row bounds.

Packed tokens go in as one sequence. The mask is a CuTe function that reads two bounds per row and
interval; the lists of full and partial tiles come from ours, in both directions.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from magi_world.kernels.attention.autograd import add_sink, joined_sink
from magi_world.kernels.attention.call import Call, Refusal, import_refusal
from magi_world.kernels.attention.slices import AttnSlices
from magi_world.kernels.attention.tiles import TileList, padded, tile_lists
from magi_world.kernels.device import capability

MAX_WIDTH = 128
"""wider heads have tiles that do not divide the blocks of the backward"""


_TAKES = (
    "mask_mod", "aux_tensors", "block_sparse_tensors", "block_sparse_tensors_bwd", "return_lse",
    "deterministic", "softmax_scale",
)  # fmt: skip
"""what tells flash-attn-4 from the older module of the same name in flash-attn 2.8"""


def refuses(call: Call, slices: AttnSlices) -> Refusal | None:
    """Why a call cannot be taken, or None."""
    if call.device.type != "cuda" or call.capability // 10 not in (9, 10, 11):
        return Refusal("needs a CUDA device of sm_90, sm_100 or sm_110")
    if call.dtype not in (torch.float16, torch.bfloat16):
        return Refusal(f"takes float16 and bfloat16, not {call.dtype}")
    if call.width > MAX_WIDTH or call.width % 8:
        return Refusal(
            f"takes head widths up to {MAX_WIDTH} that are multiples of 8, not {call.width}"
        )
    if call.softcap:
        return Refusal("takes no softcap together with a mask")
    if call.deterministic and call.needs_grad:
        return Refusal("has no deterministic backward for lists of tiles as we make them")
    return import_refusal("flash_attn.cute", "cuda", "flash_attn_func", _TAKES)


@lru_cache(maxsize=16)
def _mask_function(num_intervals: int) -> Any:
    """Which keys a row sees, from the bounds of its intervals; one function for each number."""
    import cutlass
    from cutlass import cute
    from flash_attn.cute.utils import scalar_to_ssa

    @cute.jit
    def seen(batch, head, q_index, k_index, seqlen_info, aux_tensors):  # type: ignore[no-untyped-def]
        left, right = aux_tensors
        row = q_index[0]
        result = (k_index >= scalar_to_ssa(left[0, row], cutlass.Int32)) & (
            k_index < scalar_to_ssa(right[0, row], cutlass.Int32)
        )
        for f in cutlass.range_constexpr(1, num_intervals):
            result = result | (
                (k_index >= scalar_to_ssa(left[f, row], cutlass.Int32))
                & (k_index < scalar_to_ssa(right[f, row], cutlass.Int32))
            )
        return result

    return seen


def _blocks(lists: TileList, others: int, block: tuple[int, int], device: torch.device) -> Any:
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    tables = [torch.from_numpy(x).to(device)[None, None] for x in padded(lists, others)]
    return BlockSparseTensorsTorch(*tables, block_size=block)


@torch.inference_mode(False)  # kept with the mask, which training may use next
def _plan(slices: AttnSlices, shape: tuple[int, int], device: torch.device) -> dict[str, Any]:
    """The arguments that say what is visible, made once for a mask."""
    key = ("flash4", shape, device)
    known: dict[str, Any] | None = slices.plans.get(key)
    if known is None:
        # Blackwell works on two query tiles at a time
        block = (128 if capability(device) // 10 == 9 else 256, 128)
        tiles = tile_lists(slices, shape, *block)
        counts = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
        bounds = [
            torch.from_numpy(side).to(device, torch.int32).contiguous()
            for side in slices.row_intervals(shape[0])
        ]
        known = slices.plans[key] = {
            "mask_mod": _mask_function(bounds[0].shape[0]),
            "aux_tensors": bounds,
            "block_sparse_tensors": _blocks(tiles.by_query, counts[1], block, device),
            "block_sparse_tensors_bwd": _blocks(tiles.by_key, counts[0], block, device),
        }
    return known


def attention_flash4(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    slices: AttnSlices,
    *,
    scale: float,
    sink: Tensor | None = None,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor]:
    """See :func:`magi_world.kernels.attention.attention`."""
    from flash_attn.cute import flash_attn_func

    out, lse = flash_attn_func(
        *(x.contiguous()[None] for x in (q_THD, k_TGD, v_TGD)),
        softmax_scale=scale,
        deterministic=deterministic,
        return_lse=True,
        **_plan(slices, (q_THD.shape[0], k_TGD.shape[0]), q_THD.device),
    )
    out, lse = out[0], lse[0].T  # [T, H, D] and [H, T] -> [T, H]
    if sink is None:
        return out, lse
    return add_sink(out, lse, joined_sink(sink, q_THD.shape[1], torch.float32))
