"""Driver of the FP8 cases: rounding, single linears and a quantised DiT (section 8)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magi_world.checkpoints.safetensors_stream import read_header
from magi_world.kernels.fp8 import quantise
from magi_world.models.dit import VideoDiT
from magi_world.models.fp8 import Fp8Linear, float8_names, install_fp8
from tests.golden.cases import Case, Computed


def install_stored_fp8(dit: VideoDiT, weights: Path) -> None:
    """Give a DiT FP8 linears where the weight file has float8 weights."""
    install_fp8(dit, float8_names({entry.name: entry.dtype for entry in read_header(weights)}))


def run_fp8(
    case: Case, forward: Callable[..., Tensor], load: Callable[[Case], VideoDiT]
) -> Computed:
    """The inputs tell which computation it is."""
    inputs = case.inputs()
    if "weight_bits" in inputs:
        return Computed(tensors=_linear(inputs))
    if "kv_range" in case.meta:
        return Computed(tensors=_model(load(case), case.meta, inputs, forward))
    rounded = {
        "q": quantise(inputs["x"], inputs["scale_vector"]),
        "q2": quantise(inputs["x"], inputs["smooth_scale"]),
    }
    wide = inputs["double_rounding_x"]
    twice, once = quantise(wide, torch.ones(1)), wide.to(torch.float8_e4m3fn)
    tensors = {f"{name}_bits": q.view(torch.uint8) for name, q in rounded.items()}
    tensors |= {f"{name}_float": q.float() for name, q in rounded.items()}
    tensors |= {
        "double_rounding_q_bits": twice.view(torch.uint8),
        "direct_bits": once.view(torch.uint8),
    }
    differing = int((twice.view(torch.uint8) != once.view(torch.uint8)).sum())
    return Computed(tensors=tensors, values={"entries_where_double_rounding_differs": differing})


def _linear(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    weight = inputs["weight_bits"].view(torch.float8_e4m3fn)
    assert torch.equal(weight.float(), inputs["weight_float"])
    linear = Fp8Linear(weight.shape[2], weight.shape[1], smooth="smooth_scale" in inputs)
    names = linear.state_dict().keys() - {"weight"}
    linear.load_state_dict({"weight": weight} | {name: inputs[name] for name in names})
    x = inputs["x"]
    # a bfloat16 linear that is given float32 does the same arithmetic and rounds at the end
    return {
        "xq_bits": linear.quantise(x).view(torch.uint8),
        "y_fp32": linear(x),
        "y_bf16_from_fp32_input": linear(x).to(torch.bfloat16),
        "y_bf16_from_bf16_input": linear(x.to(torch.bfloat16)),
    }


def _model(
    dit: VideoDiT, meta: dict[str, Any], inputs: dict[str, Tensor], forward: Callable[..., Tensor]
) -> dict[str, Tensor]:
    computed: dict[str, Tensor] = {}
    hooks = []
    for index, layer in enumerate(dit.layers):

        def keep(_: nn.Module, args: Any, output: Tensor, name: str = f"layer{index}_out") -> None:
            computed[name] = output[:, None]  # one clip

        hooks.append(layer.register_forward_hook(keep))
    computed["velocity"] = forward(dit, meta, inputs)
    for hook in hooks:
        hook.remove()
    return computed
