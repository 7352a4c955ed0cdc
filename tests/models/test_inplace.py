"""The layers that work in place against the forward that gradients take."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_world.config import DiTConfig
from magi_world.kernels.attention import AttnSlices
from magi_world.models.dit import ChunkInputs, VideoDiT
from magi_world.models.inplace import InPlaceLayers


def _model(*, gated: bool, groups: int) -> VideoDiT:
    config = DiTConfig(
        num_layers=2, hidden_size=64, ffn_hidden_size=96, num_attention_heads=4,
        num_query_groups=groups, kv_channels=16, caption_channels=24, caption_max_length=8,
        gated_linear_unit=gated,
    )  # fmt: skip
    model = VideoDiT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def _inputs(model: VideoDiT, chunks: int, *, alone: bool) -> ChunkInputs:
    size = (2, 4, 8)
    n, tokens = 2 * 2 * 4, 5
    edges = [(g * n, (g + 1) * n, g * n if alone else 0, (g + 1) * n, 0) for g in range(chunks)]
    cross = [(g * n, (g + 1) * n, 0, tokens, 0) for g in range(chunks)]
    return ChunkInputs(
        x=torch.randn(chunks, 16, *size),
        t=torch.rand(chunks),
        dropped=torch.arange(chunks) % 2 == 0,
        rotary=model.rotary(torch.arange(chunks) * 2, size),
        caption=model.caption_kv(torch.randn(tokens, 24)),
        attend=AttnSlices.from_list(edges),
        cross=AttnSlices.from_list(cross),
    )


def _both(model: VideoDiT, inputs: ChunkInputs) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        in_place = model(inputs).velocity
    return in_place, model(inputs).velocity.detach()


@settings(max_examples=20, deadline=None)
@given(
    gated=st.booleans(), groups=st.sampled_from([1, 2, 4]), chunks=st.integers(1, 3),
    alone=st.booleans(),
)  # fmt: skip
def test_in_place_is_the_same_layer(gated: bool, groups: int, chunks: int, alone: bool) -> None:
    torch.manual_seed(0)
    model = _model(gated=gated, groups=groups)
    in_place, plain = _both(model, _inputs(model, chunks, alone=alone))
    torch.testing.assert_close(in_place, plain, rtol=2e-5, atol=2e-5)


def test_inputs_are_left_as_they_were() -> None:
    torch.manual_seed(0)
    model = _model(gated=False, groups=2)
    inputs = _inputs(model, 2, alone=True)
    before = [inputs.x.clone(), *(part.clone() for part in inputs.caption[0])]
    first, _ = _both(model, inputs)
    second, _ = _both(model, inputs)
    assert torch.equal(first, second)
    assert all(map(torch.equal, before, [inputs.x, *inputs.caption[0]]))


@pytest.mark.parametrize("kind", ["bfloat16", "hook", "gradients"])
def test_others_take_the_plain_forward(kind: str) -> None:
    model, hidden = _model(gated=False, groups=2), torch.zeros(2, 64)
    with torch.no_grad():
        assert InPlaceLayers.fits(model.layers, hidden)
        if kind == "hook":
            model.layers[1].mlp.linear_fc1.register_forward_hook(lambda *_: None)
        elif kind == "bfloat16":
            hidden = hidden.bfloat16()
    with torch.set_grad_enabled(kind == "gradients"):
        assert not InPlaceLayers.fits(model.layers, hidden)
