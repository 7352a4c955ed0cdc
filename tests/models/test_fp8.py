"""FP8 linears in a DiT: where they go, and what casting and moving leave alone."""

import pytest
import torch

from magi_world.checkpoints.random_presets import random_preset
from magi_world.errors import CheckpointError
from magi_world.models.dit import VideoDiT
from magi_world.models.fp8 import Fp8Linear, float8_names, install_fp8, quantised_names


def make_dit() -> VideoDiT:
    return VideoDiT(random_preset("tiny").config.dit)


def test_all_but_the_outer_layers_are_quantised() -> None:
    names = quantised_names(4)
    assert len(names) == 14 and {name.split(".")[2] for name in names} == {"1", "2"}
    assert quantised_names(2) == quantised_names(1) == []


def test_installing() -> None:
    dit = make_dit()
    install_fp8(dit, quantised_names(4))
    dtypes = {name: tensor.dtype for name, tensor in dit.state_dict().items()}
    assert sorted(float8_names(dtypes)) == sorted(quantised_names(4))
    smooth = {
        name.rpartition(".")[2]
        for name, module in dit.named_modules()
        if isinstance(module, Fp8Linear) and module.smooth_scale is not None
    }
    assert smooth == {"linear_proj", "linear_fc2"}
    layer = dit.layers[1]
    qkv = layer.self_attention.linear_qkv
    assert qkv.k.weight.shape == (1, 32, 64) and qkv.k.input_scale.shape == (64,)
    proj = layer.self_attention.linear_proj
    assert proj.smooth_scale.shape == (1, 128) and proj.input_scale.shape == (1,)
    before = {n: t.dtype for n, t in dit.state_dict().items() if n in dict(dit.named_buffers())}
    dit.to_recipe(torch.bfloat16)
    assert {n: dit.state_dict()[n].dtype for n in before} == before
    assert dit.block_dtype == torch.bfloat16


@pytest.mark.parametrize(
    "name",
    ["nothing", "x_embedder", "videodit_blocks.layers.1.self_attention.linear_kv_xattn"],
)
def test_only_what_can_be_quantised_is(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"{name} is no linear that can be FP8"):
        install_fp8(make_dit(), [name])


@pytest.mark.parametrize("smooth", [False, True])
def test_a_linear_follows_its_input(smooth: bool) -> None:
    linear = Fp8Linear(16, 8, smooth=smooth)
    weight = torch.randn(1, 8, 16)
    linear.weight.copy_(weight.to(torch.float8_e4m3fn))
    x = torch.randn(2, 3, 16)
    exact = x @ weight[0].T
    assert (linear(x) - exact).norm() < 0.08 * exact.norm()
    assert linear(x).shape == (2, 3, 8)
    assert linear(x.bfloat16()).dtype == torch.bfloat16
    assert linear.clipped(x) == 0 and linear.clipped(x * 1e4) > 0
    assert "smooth" in repr(linear)
