"""The closed form against what torch counts in real forwards."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from magi_world.config import DiTConfig
from magi_world.evaluation.bench import cpu_attention_flops
from magi_world.kernels.attention import AttnSlices
from magi_world.models.dit import ChunkInputs, VideoDiT
from magi_world.planning.flops import caption_flops, forward_flops
from magi_world.planning.presets import PRESETS


def counted(config: DiTConfig, chunks: int, side: int, caption_tokens: int) -> tuple[int, int]:
    """Operations of a forward over chunks that see all of them, and of their caption."""
    torch.manual_seed(0)
    dit = VideoDiT(config).requires_grad_(False)
    n = 2 * (side // config.patch_size) ** 2
    latents = torch.randn(chunks, config.latent_channels, 2, side, side)
    caption = torch.randn(caption_tokens, config.caption_channels)
    counter = FlopCounterMode(display=False, custom_mapping=cpu_attention_flops())
    with torch.inference_mode(), counter:
        kv = dit.caption_kv(caption)
    projected = counter.get_total_flops()
    inputs = ChunkInputs(
        x=latents,
        t=torch.full((chunks,), 0.5),
        dropped=torch.zeros(chunks, dtype=torch.bool),
        rotary=dit.rotary(torch.arange(chunks) * 2, (2, side, side)),
        caption=kv,
        attend=AttnSlices.repeated(1, chunks * n, chunks * n),
        cross=AttnSlices.repeated(1, chunks * n, caption_tokens),
    )
    with torch.inference_mode(), counter:
        dit(inputs)
    return int(counter.get_total_flops()), int(projected)


@settings(max_examples=12)
@given(
    layers=st.integers(1, 3),
    heads=st.sampled_from([2, 4]),
    gated=st.booleans(),
    half=st.booleans(),
    chunks=st.integers(1, 3),
    side=st.sampled_from([4, 8]),
    caption=st.integers(1, 9),
)
def test_a_forward_takes_what_the_closed_form_says(
    layers: int, heads: int, gated: bool, half: bool, chunks: int, side: int, caption: int
) -> None:
    config = DiTConfig(
        num_layers=layers, hidden_size=heads * 16, ffn_hidden_size=40, num_attention_heads=heads,
        num_query_groups=2, kv_channels=16, caption_channels=24, caption_max_length=12,
        gated_linear_unit=gated, half_channel_vae=half,
        in_channels=32 if half else 16, out_channels=32 if half else 16,
    )  # fmt: skip
    n = 2 * (side // 2) ** 2
    forward, projected = counted(config, chunks, side, caption)
    one = forward_flops(config, tokens=n, keys=chunks * n, caption_tokens=caption)
    flags = 2 * 2 * config.caption_channels * config.condition_size  # once a forward
    assert forward == chunks * one.total + flags
    assert projected == caption_flops(config, caption)


def test_a_second_of_video_takes_what_the_paper_says() -> None:
    # about 9 PFLOP: 24B, 480p in 3:4, 16 steps, KV range 5 (spec section 7.5)
    n = 6 * (480 // 16) * (640 // 16)
    one = forward_flops(
        PRESETS["magi1-24b-distill"].dit, tokens=n, keys=5 * n, caption_tokens=128, distilled=True
    )
    assert 16 * one.total / 1e15 == pytest.approx(9, rel=0.15)
