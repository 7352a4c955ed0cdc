"""The obvious form."""

import torch
from torch import Tensor
from torch.nn import functional as F


def silu_multiply_reference(h: Tensor) -> Tensor:
    """See :func:`magi_world.kernels.swiglu.silu_multiply`."""
    gate, up = h.to(torch.promote_types(h.dtype, torch.float32)).chunk(2, dim=-1)
    return (F.silu(gate) * up).to(h.dtype)
