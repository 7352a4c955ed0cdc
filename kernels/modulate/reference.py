"""The obvious form: gate, norm, sum."""

from torch import Tensor
from torch.nn import functional as F

# Shape suffixes: G chunks, T = G * n packed tokens, E hidden width.


def gated_norm(
    branch_TE: Tensor, gate_GE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float
) -> Tensor:
    """LayerNorm of the gated branch `[T, E]`, in the dtype of the weight; its factor is weight + 1.

    Arguments as of :func:`magi_world.kernels.modulate.gate_norm_residual`.
    """
    wide = weight_E.dtype
    branch_GnE = branch_TE.to(wide).unflatten(0, (gate_GE.shape[0], -1))
    gated = (branch_GnE * gate_GE[:, None].to(wide)).flatten(0, 1)
    return F.layer_norm(gated, weight_E.shape, weight_E + 1, bias_E, eps)


def gate_norm_residual_reference(
    x_TE: Tensor, branch_TE: Tensor, gate_GE: Tensor, weight_E: Tensor, bias_E: Tensor, eps: float
) -> Tensor:
    """See :func:`magi_world.kernels.modulate.gate_norm_residual`."""
    summed = x_TE.to(weight_E.dtype) + gated_norm(branch_TE, gate_GE, weight_E, bias_E, eps)
    return summed.to(x_TE.dtype)
