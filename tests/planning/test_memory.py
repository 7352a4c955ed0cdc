"""The memory formulae against measured peaks of small models on a CPU, within a tenth."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_world.config import DiTConfig, SamplingConfig, VAEConfig, WorldConfig
from magi_world.evaluation.peak_memory import peak_bytes
from magi_world.magi1_config import Magi1Config
from magi_world.models.dit import VideoDiT
from magi_world.models.pixels import to_frames
from magi_world.models.vae import VitVAE
from magi_world.models.vae_tiling import Tiling, tiled_decode
from magi_world.planning import memory
from magi_world.planning.plan import PlanRequest, make_plan
from magi_world.planning.steady import PROMPT_TOKENS
from magi_world.sampling.captions import Caption
from magi_world.sampling.settings import GenerateSettings, sampler_config
from magi_world.sampling.window import WindowSampler

VAE = VAEConfig(
    video_size=32, video_length=8, patch_size=8, patch_length=4, embed_dim=32, depth=1,
    num_heads=2, use_final_proj=True,
)  # fmt: skip


def model(**changes: Any) -> WorldConfig:
    """A small MAGI-1 model for frames of 128x128, 384 tokens a chunk."""
    distill = changes.pop("distill", False)
    window = changes.pop("window", 4)
    shape: dict[str, Any] = {
        "num_layers": 3, "hidden_size": 96, "ffn_hidden_size": 256, "num_attention_heads": 6,
        "num_query_groups": 2, "kv_channels": 16, "caption_channels": 32,
        "caption_max_length": 800,
    } | changes  # fmt: skip
    magi1 = Magi1Config(num_steps=4, window=window, distill=distill, cfg_number=1 if distill else 3)
    return WorldConfig(
        dit=DiTConfig(**shape), vae=VAE, magi1=magi1, height=128, width=128, fps=24,
        sampling=SamplingConfig(chunk_width=6, kv_range=5, clean_null_caption=True),
    )  # fmt: skip


class Endless:
    """Conditions of chunks without end."""

    def __init__(self, size: tuple[int, int, int, int], caption: Caption, ranges: Any) -> None:
        self.size, self._caption, self._ranges = size, caption, ranges

    def exists(self, chunk: int) -> bool:
        return True

    def noise(self, chunk: int) -> Tensor:
        return torch.zeros(self.size)

    def caption(self, chunk: int) -> Caption:
        return self._caption

    def kv_ranges(self, chunk: int) -> tuple[int, ...]:
        ranges: tuple[int, ...] = self._ranges
        return ranges


def measured(config: WorldConfig, settings: GenerateSettings, dit: VideoDiT) -> int:
    """Peak of denoising nine chunks, weights not counted."""
    sampler = sampler_config(config, settings)
    size = config.latent_shape

    def run() -> None:
        null, caption = (
            Caption(dit.caption_kv(torch.zeros(rows, config.dit.caption_channels)))
            for rows in (config.sampling.null_prompt_tokens, PROMPT_TOKENS)
        )
        window = WindowSampler(dit, sampler, size=size, null=null, num_chunks=9)
        for _ in window.run(Endless(size, caption, sampler.kv_ranges)):
            pass

    with torch.inference_mode():
        return peak_bytes(run)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ffn_hidden_size": 32},
        {"ffn_hidden_size": 768},
        {"ffn_hidden_size": 384, "gated_linear_unit": True},
        {"hidden_size": 192, "num_attention_heads": 12, "ffn_hidden_size": 64},
        {"hidden_size": 192, "kv_channels": 32, "num_query_groups": 6},
        {"num_layers": 8},
        {"window": 1},
        {"window": 2, "num_layers": 1},
        {"window": 1, "num_query_groups": 6, "ffn_hidden_size": 32},
        {"distill": True},
        {"distill": True, "window": 1, "ffn_hidden_size": 768},
        {"half_channel_vae": True, "in_channels": 32, "out_channels": 32},
    ],
    ids=lambda changes: " ".join(f"{key}={value}" for key, value in changes.items()) or "base",
)
def test_denoising_takes_what_the_plan_says(changes: dict[str, Any]) -> None:
    config = model(**changes)
    dit = VideoDiT(config.dit).requires_grad_(False)
    plan = make_plan(config).memory
    weights = sum(p.numel() * p.element_size() for p in dit.parameters())
    assert plan.weights == weights
    forward = memory.activation_bytes(
        config.dit, chunks=config.magi1.window if config.magi1 else 1,
        tokens=config.tokens_per_chunk, seen=5, dtype=torch.float32,
    )  # fmt: skip
    # without the weights, which would hide mistakes
    planned = plan.kv_cache + plan.captions + plan.latents + forward
    assert planned == pytest.approx(measured(config, GenerateSettings(), dit), rel=0.1)


@pytest.mark.parametrize(
    ("height", "width", "frames", "embed_dim"),
    [
        (64, 64, 12, 32), (64, 64, 12, 512), (128, 256, 24, 32), (256, 256, 24, 32),
        (480, 640, 24, 32),
    ],
)  # fmt: skip
def test_decoding_takes_what_the_plan_says(
    height: int, width: int, frames: int, embed_dim: int
) -> None:
    config = replace(VAE, embed_dim=embed_dim, use_final_proj=embed_dim < 256)
    vae = VitVAE(config).requires_grad_(False)
    z = torch.zeros(1, 16, frames // 4, height // 8, width // 8)
    tiling = Tiling.published(24, 4)
    with torch.inference_mode():
        peak = peak_bytes(lambda: to_frames(tiled_decode(vae, z, tiling)))
    assert memory.vae_bytes(config, frames, height, width) == pytest.approx(peak, rel=0.1)


def test_host_memory_takes_the_cache() -> None:
    config = model(num_layers=8)
    dit = VideoDiT(config.dit).requires_grad_(False)
    near, far = make_plan(config), make_plan(config, PlanRequest(offload_kv=True))
    assert near.memory.kv_cache == far.host_bytes
    assert far.memory.kv_cache * 4 == near.memory.kv_cache
    # on a CPU both are host memory: together they are what is measured
    peaks = [measured(config, GenerateSettings(kv_on_host=on), dit) for on in (False, True)]
    assert peaks[1] - peaks[0] == pytest.approx(far.memory.kv_cache, rel=0.1)
