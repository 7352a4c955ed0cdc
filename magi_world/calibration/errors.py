"""What FP8 costs: every quantised linear beside the one it replaces, on the same inputs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from magi_world.models.dit import VideoDiT
from magi_world.models.fp8 import Fp8Linear, quantised_names


@dataclass
class LinearError:
    """Sums over the outputs of one linear."""

    difference: float = 0.0
    """squared differences between FP8 and the original"""
    reference: float = 0.0
    """squared outputs of the original"""
    clipped: int = 0
    """inputs beyond the range of FP8"""
    inputs: int = 0

    @property
    def relative(self) -> float:
        """Relative L2 error."""
        return (self.difference / self.reference) ** 0.5 if self.reference else 0.0

    @property
    def clipped_share(self) -> float:
        """Share of the inputs that were clipped."""
        return self.clipped / self.inputs if self.inputs else 0.0


@contextmanager
def compared(dit: VideoDiT, quantised: VideoDiT) -> Iterator[dict[str, LinearError]]:
    """Measure the quantised linears during every forward of ``dit`` inside the block.

    A linear behind a norm gets what the folded norm in front of it makes of the same hidden
    states, so the rounding of the norm counts too.
    """
    errors = {name: LinearError() for name in quantised_names(dit.config.num_layers)}
    hooks = []
    # the folded norm's output for the hidden states that its original has just seen
    smoothed: dict[str, Tensor] = {}
    for name, error in errors.items():
        norm = _norm_of(name)
        if norm is not None and norm not in smoothed:
            smoothed[norm] = torch.empty(0)
            folded = quantised.get_submodule(norm)

            def normalise(
                _: nn.Module, inputs: tuple[Any, ...], folded: nn.Module = folded, norm: str = norm
            ) -> None:
                smoothed[norm] = folded(inputs[0])

            hooks.append(dit.get_submodule(norm).register_forward_pre_hook(normalise))
        linear = quantised.get_submodule(name)
        assert isinstance(linear, Fp8Linear)

        def compare(
            _: nn.Module,
            inputs: tuple[Any, ...],
            output: Tensor,
            linear: Fp8Linear = linear,
            error: LinearError = error,
            norm: str | None = norm,
        ) -> None:
            x = inputs[0] if norm is None else smoothed[norm]
            error.difference += float((linear(x).double() - output.double()).square().sum())
            error.reference += float(output.double().square().sum())
            error.clipped += linear.clipped(x)
            error.inputs += x.numel()

        hooks.append(dit.get_submodule(name).register_forward_hook(compare))
    try:
        yield errors
    finally:
        for hook in hooks:
            hook.remove()


def by_layer(errors: Mapping[str, LinearError]) -> list[dict[str, Any]]:
    """Rows for a table: one a layer, the relative error of each linear and of all together."""
    rows: dict[int, dict[str, Any]] = {}
    sums: dict[int, LinearError] = {}
    for name, error in errors.items():
        _, _, rest = name.partition("layers.")
        number, _, _ = rest.partition(".")
        layer = int(number)
        row = rows.setdefault(layer, {"layer": layer})
        row[name.rpartition(".")[2]] = error.relative
        total = sums.setdefault(layer, LinearError())
        # every linear counts the same, however large its outputs are
        total.difference += error.relative**2
        total.reference += 1.0
        total.clipped += error.clipped
        total.inputs += error.inputs
    for layer, row in rows.items():
        row |= {"all": sums[layer].relative, "clipped": sums[layer].clipped_share}
    return list(rows.values())


def relative_error(value: Tensor, reference: Tensor) -> float:
    """Relative L2 error of a tensor."""
    difference = torch.linalg.vector_norm((value - reference).double())
    return float(difference / torch.linalg.vector_norm(reference.double()))


def _norm_of(name: str) -> str | None:
    """Name of the norm in front of a linear, None where something else stands there."""
    if ".linear_qkv." in name:
        return name.rpartition(".")[0] + ".layer_norm"
    if name.endswith("mlp.linear_fc1"):
        return name.removesuffix("linear_fc1") + "layer_norm"
    return None
