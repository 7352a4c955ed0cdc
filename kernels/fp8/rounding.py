"""Float to e4m3fn as the published models round it, in plain torch on any device."""

import torch
from torch import Tensor

LARGEST = 448.0
"""largest finite e4m3fn"""

_PIECE = 1 << 26  # elements rounded at a time: the float32 copies of an activation stay small


def quantise_reference(x: Tensor, scale: Tensor) -> Tensor:
    """See :func:`magi_world.kernels.fp8.quantise`."""
    flat = x.reshape(-1, x.shape[-1])
    out = torch.empty(flat.shape, dtype=torch.float8_e4m3fn, device=x.device)
    rows = max(1, _PIECE // max(1, flat.shape[-1]))
    for start in range(0, len(flat), rows):
        piece = flat[start : start + rows].float() / scale.flatten()
        out[start : start + rows] = piece.clamp_(-LARGEST, LARGEST).to(torch.bfloat16).to(out.dtype)
    return out.view(x.shape)
