"""The product on the FP8 units of a card, through ``torch._scaled_mm``."""

import torch
from torch import Tensor

_MULTIPLE = 16  # what cuBLAS asks of K and N
_CAPABILITY = (8, 9)  # Ada and Hopper are the first with FP8 units
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def supported(q_MK: Tensor, w_NK: Tensor, dtype: torch.dtype) -> bool:
    """Say whether the card and the shapes can do it."""
    if not q_MK.is_cuda or dtype not in _DTYPES or not hasattr(torch, "_scaled_mm"):
        return False
    if torch.cuda.get_device_capability(q_MK.device) < _CAPABILITY:
        return False
    return all(side % _MULTIPLE == 0 for side in w_NK.shape)


def matmul(q_MK: Tensor, w_NK: Tensor, scales: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """As the reference, summed in float32 by the card."""
    scale_a, scale_b = scales
    product: Tensor = torch._scaled_mm(
        q_MK.contiguous(), w_NK.T, scale_a=scale_a.float(), scale_b=scale_b.float(),
        out_dtype=dtype, use_fast_accum=False,
    )  # fmt: skip
    return product
