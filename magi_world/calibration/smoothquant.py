"""SmoothQuant of a DiT: activations observed, outliers moved into the weights, both rounded to FP8.

The method is Xiao et al., "SmoothQuant" (arXiv 2211.10438), with the migration strength of the
MAGI-1 paper. Channel j of a linear's input is divided by ``s_j = max|x_j|^a / max|w_j|^(1-a)`` and
column j of its weight multiplied by it. Where a norm stands in front, the division goes into the
norm; elsewhere into the activation's scale, which is then one a channel (``smooth_scale``).

Shape suffixes: K input channels, N output channels.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from magi_world.errors import ConfigError
from magi_world.kernels.fp8 import LARGEST
from magi_world.models.dit import VideoDiT
from magi_world.models.fp8 import Fp8Linear, install_fp8, quantised_names

ALPHA = 0.45
"""migration strength of the published models"""

Peaks = dict[str, Tensor]
"""largest magnitude of every input channel `[K]` of every linear, float32"""

_SMALLEST = 1e-5  # a channel that was never used neither divides by zero nor grows without bound

# linears of a layer behind one norm, and that norm
_NORMED = (
    ("self_attention.linear_qkv.layer_norm",
     tuple(f"self_attention.linear_qkv.{name}" for name in ("q", "qx", "k", "v"))),
    ("mlp.layer_norm", ("mlp.linear_fc1",)),
)  # fmt: skip
_ALONE = ("self_attention.linear_proj", "mlp.linear_fc2")


@contextmanager
def observed(dit: VideoDiT) -> Iterator[Peaks]:
    """Record the peaks of all linears that will be FP8, over every forward inside the block."""
    peaks: Peaks = {}
    hooks = []
    for name in quantised_names(dit.config.num_layers):

        def see(_: nn.Module, inputs: tuple[Any, ...], name: str = name) -> None:
            peak = inputs[0].detach().float().abs().flatten(0, -2).amax(dim=0)
            peaks[name] = torch.maximum(peaks[name], peak) if name in peaks else peak

        hooks.append(dit.get_submodule(name).register_forward_pre_hook(see))
    try:
        yield peaks
    finally:
        for hook in hooks:
            hook.remove()


def smoothing(input_peak_K: Tensor, weight_peak_K: Tensor, alpha: float) -> Tensor:
    """The factors s `[K]` that input channels are divided by and weight columns multiplied with.

    Args:
        input_peak_K: largest magnitude of every input channel.
        weight_peak_K: largest magnitude of every weight column.
        alpha: 0 leaves all outliers in the activations, 1 moves all of them into the weights.
    """
    peak = input_peak_K.clamp_min(_SMALLEST) ** alpha
    return peak / weight_peak_K.clamp_min(_SMALLEST) ** (1 - alpha)


def quantise_dit(dit: VideoDiT, peaks: Peaks, alpha: float = ALPHA) -> VideoDiT:
    """Build the FP8 form of a DiT.

    Args:
        dit: float32 or bfloat16; it is left as it was.
        peaks: from :func:`observed`.
        alpha: migration strength, 0 … 1.

    Returns:
        A model that shares every unchanged parameter with ``dit``.

    Raises:
        ConfigError: a strength outside its range, peaks that lack a linear or are not finite, or
            a model that is quantised already or has no middle layer.
    """
    names = quantised_names(dit.config.num_layers)
    check_quantisable(dit, alpha)
    lacking = [name for name in names if name not in peaks]
    if lacking:
        raise ConfigError(f"{len(lacking)} linears were never observed, such as {lacking[0]}")
    wrong = [name for name in names if not peaks[name].isfinite().all()]
    if wrong:
        raise ConfigError(f"the inputs of {wrong[0]} were not finite during calibration")
    shared = {id(parameter): parameter for parameter in dit.parameters()}
    quantised = copy.deepcopy(dit, shared)  # modules are copied, parameters are not
    install_fp8(quantised, names)
    for index in range(1, dit.config.num_layers - 1):
        prefix = f"videodit_blocks.layers.{index}."
        for norm, linears in _NORMED:
            full = [prefix + name for name in linears]
            factors = smoothing(peaks[full[0]], _weight_peak(dit, full), alpha)
            folded, factors = _fold(dit.get_submodule(prefix + norm), factors)
            quantised.set_submodule(prefix + norm, folded)
            for name in full:
                _fill(quantised, dit, name, peaks[name], factors)
        for name in _ALONE:
            full_name = prefix + name
            factors = smoothing(peaks[full_name], _weight_peak(dit, [full_name]), alpha)
            _fill(quantised, dit, full_name, peaks[full_name], factors)
    return quantised.eval()


def check_quantisable(dit: VideoDiT, alpha: float) -> None:
    """Refuse what :func:`quantise_dit` would refuse, before anything is observed.

    Raises:
        ConfigError: see there.
    """
    if not 0 <= alpha <= 1:
        raise ConfigError(f"alpha {alpha} is outside [0, 1]")
    if any(isinstance(module, Fp8Linear) for module in dit.modules()):
        raise ConfigError("the model is FP8 already")
    if dit.config.num_layers < 3:
        raise ConfigError(
            f"a model of {dit.config.num_layers} layers has none to quantise: the first and the "
            "last stay as they are"
        )


def _weight_peak(dit: VideoDiT, names: Iterable[str]) -> Tensor:
    """Largest magnitude of every column over linears that share their input."""
    columns: Sequence[Tensor] = [_weight(dit, name).abs().amax(dim=0) for name in names]
    return torch.stack(list(columns)).amax(dim=0)


def _weight(dit: VideoDiT, name: str) -> Tensor:
    return dit.get_submodule(name).get_parameter("weight").detach().float()


def _fold(norm: nn.Module, factors_K: Tensor) -> tuple[nn.LayerNorm, Tensor]:
    """Divide a norm's output by factors; return it and the factors that it really divides by.

    Its weight is rounded to the dtype it is stored in. What that changes is put into the factors,
    so that the weights behind it undo exactly what the norm does.
    """
    assert isinstance(norm, nn.LayerNorm)
    folded = copy.deepcopy(norm)
    old = norm.weight.detach().float()
    new = (old / factors_K).to(torch.bfloat16).float()
    usable = (old != 0) & (new != 0)
    real = torch.where(usable, old / torch.where(usable, new, 1.0), factors_K)
    with torch.no_grad():
        folded.weight.copy_(new)
        folded.bias.copy_((norm.bias.detach().float() / real).to(torch.bfloat16))
    return folded, real


def _fill(quantised: VideoDiT, dit: VideoDiT, name: str, peak_K: Tensor, factors_K: Tensor) -> None:
    """Set the tensors of an FP8 linear from the weight it replaces."""
    linear = quantised.get_submodule(name)
    assert isinstance(linear, Fp8Linear)
    weight_NK = _weight(dit, name) * factors_K
    weight_scale = weight_NK.abs().amax().clamp_min(_SMALLEST) / LARGEST
    input_scale = (peak_K / factors_K).amax().clamp_min(_SMALLEST) / LARGEST
    rounded = (weight_NK / weight_scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    linear.weight.copy_(rounded[None])
    linear.weight_scale.fill_(float(weight_scale))
    linear.input_scale.fill_(float(input_scale))
    if linear.smooth_scale is not None:
        linear.smooth_scale.copy_((factors_K * input_scale)[None])
