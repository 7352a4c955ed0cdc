"""The slow, obvious product: both sides widened to float32."""

import torch
from torch import Tensor


def matmul(q_MK: Tensor, w_NK: Tensor, scales: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """`q @ w^T` in float32 times both scales, rounded once to ``dtype``; see the dispatcher."""
    product = q_MK.float() @ w_NK.float().T
    return (product * (scales[0] * scales[1])).to(dtype)
