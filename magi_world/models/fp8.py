"""W8A8 linears in FP8 and where MAGI-1 has them (spec section 5.7, golden README section 8).

Two kinds share one computation. *Per tensor* (q, qx, k, v and fc1): the activation is divided by
``input_scale``, which has an entry per channel, all equal; the smoothing sits in the norm in front.
*Smoothed* (linear_proj and fc2, with no norm in front): it is divided by ``smooth_scale``, which is
the smoothing vector times the activation's scale; the weight carries the inverse.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from magi_world.errors import CheckpointError
from magi_world.kernels.fp8 import LARGEST, matmul, quantise

PER_TENSOR = (
    "self_attention.linear_qkv.q", "self_attention.linear_qkv.qx",
    "self_attention.linear_qkv.k", "self_attention.linear_qkv.v", "mlp.linear_fc1",
)  # fmt: skip
SMOOTHED = ("self_attention.linear_proj", "mlp.linear_fc2")


class Fp8Linear(nn.Module):
    """A linear without bias whose weight and input are float8 e4m3fn.

    Its tensors are buffers: they are never trained, and casting the model leaves them alone.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor
    smooth_scale: Tensor | None

    def __init__(self, in_features: int, out_features: int, *, smooth: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        weight = torch.zeros(1, out_features, in_features, dtype=torch.float8_e4m3fn)
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", torch.ones(1))
        self.register_buffer("input_scale", torch.ones(1 if smooth else in_features))
        self.register_buffer("smooth_scale", torch.ones(1, in_features) if smooth else None)

    def extra_repr(self) -> str:
        """Sizes, as nn.Linear prints them."""
        smooth = self.smooth_scale is not None
        return f"in={self.in_features}, out={self.out_features}, smooth={smooth}"

    def quantise(self, x: Tensor) -> Tensor:
        """Round an input `[..., in]` to float8."""
        scale = self.input_scale if self.smooth_scale is None else self.smooth_scale
        return quantise(x, scale)

    def clipped(self, x: Tensor) -> int:
        """How many inputs `[..., in]` lie beyond the range of float8."""
        scale = self.input_scale if self.smooth_scale is None else self.smooth_scale
        return int((x.float() / scale.flatten()).abs().gt(LARGEST).sum())

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]` in the dtype of x."""
        q_MK = self.quantise(x).flatten(0, -2)
        # of a vector only the first entry de-quantises, as in the published product
        scales = (self.input_scale[:1], self.weight_scale)
        return matmul(q_MK, self.weight[0], scales, x.dtype).view(*x.shape[:-1], self.out_features)


def quantised_names(num_layers: int) -> list[str]:
    """Names of the linears that are FP8 in a quantised DiT: those of all but the outer layers."""
    return [
        f"videodit_blocks.layers.{layer}.{name}"
        for layer in range(1, num_layers - 1)
        for name in (*PER_TENSOR, *SMOOTHED)
    ]


def float8_names(dtypes: Mapping[str, torch.dtype]) -> list[str]:
    """Names of the linears whose weight is float8 in a checkpoint, from its tensors' dtypes."""
    return [
        name.removesuffix(".weight")
        for name, dtype in dtypes.items()
        if name.endswith(".weight") and dtype == torch.float8_e4m3fn
    ]


def install_fp8(dit: nn.Module, names: Iterable[str]) -> None:
    """Put FP8 linears, still empty, in the places of ordinary ones.

    Args:
        dit: the model, changed in place.
        names: submodules, such as :func:`quantised_names`.

    Raises:
        CheckpointError: a name that is no linear which can be quantised.
    """
    modules = dict(dit.named_modules())
    for name in names:
        old = modules.get(name)
        if not isinstance(old, nn.Linear) or not name.endswith((*PER_TENSOR, *SMOOTHED)):
            raise CheckpointError(f"{name} is no linear that can be FP8")
        with torch.device(old.weight.device):
            new = Fp8Linear(old.in_features, old.out_features, smooth=name.endswith(SMOOTHED))
        dit.set_submodule(name, new)
