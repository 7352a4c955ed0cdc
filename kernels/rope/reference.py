"""The obvious forms: norm, rotate, write."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Shape suffixes: T packed tokens, H heads, D head width, R rotated pairs of channels.


def rotate(x_THD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate the first 2R channels of every head, in two halves; the others pass through."""
    half = cos_TR.shape[-1]
    a, b, rest = x_THD.split([half, half, x_THD.shape[-1] - 2 * half], dim=-1)
    cos, sin = cos_TR[:, None], sin_TR[:, None]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def norm_rotary_reference(
    x_THD: Tensor, weight_D: Tensor, bias_D: Tensor, cos_TR: Tensor, sin_TR: Tensor, eps: float
) -> Tensor:
    """See :func:`magi_world.kernels.rope.norm_rotary`."""
    normed = F.layer_norm(x_THD.to(weight_D.dtype), weight_D.shape, weight_D + 1, bias_D, eps)
    return rotate(normed, cos_TR, sin_TR).to(x_THD.dtype)
