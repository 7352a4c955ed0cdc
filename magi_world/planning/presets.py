"""The published MAGI-1 models as configurations (spec sections 1.1, 2.1 and 3.1)."""

from typing import Any

from magi_world.config import DiTConfig, SamplingConfig, VAEConfig, WorldConfig
from magi_world.magi1_config import Magi1Config, T5Config

T5_PARAMETERS = 4_762_310_656
"""parameters of the text encoder of every published model, T5-v1.1-XXL"""

_VAE = VAEConfig(
    video_size=256, video_length=16, patch_size=8, patch_length=4, embed_dim=1024, depth=24,
    num_heads=16,
)  # fmt: skip

_SHARED: dict[str, Any] = {
    "num_query_groups": 8, "kv_channels": 128, "caption_channels": 4096, "caption_max_length": 800,
    "params_dtype": "bfloat16",
}  # fmt: skip
_DIT_4_5B = DiTConfig(
    num_layers=34, hidden_size=3072, ffn_hidden_size=12288, num_attention_heads=24, **_SHARED
)
_DIT_24B = DiTConfig(
    num_layers=48, hidden_size=6144, ffn_hidden_size=16384, num_attention_heads=48,
    gated_linear_unit=True, x_rescale_factor=0.1, half_channel_vae=True, in_channels=32,
    out_channels=32, **_SHARED,
)  # fmt: skip


def _published(dit: DiTConfig, size: tuple[int, int], magi1: Magi1Config) -> WorldConfig:
    return WorldConfig(
        dit=dit,
        vae=_VAE,
        sampling=SamplingConfig(
            chunk_width=magi1.chunk_width,
            kv_range=magi1.max_kv_range or 1,
            num_steps=magi1.num_steps,
            clean_t=magi1.clean_t,
            clean_null_caption=True,
        ),
        height=size[0],
        width=size[1],
        fps=magi1.fps,
        text=T5Config(d_model=dit.caption_channels),
        magi1=magi1,
    )


def _family(
    name: str, dit: DiTConfig, size: tuple[int, int], *, base_steps: int, distilled_steps: int
) -> dict[str, WorldConfig]:
    base = Magi1Config(num_steps=base_steps)
    distilled = Magi1Config(num_steps=distilled_steps, cfg_number=1, distill=True)
    quantised = Magi1Config(num_steps=distilled_steps, cfg_number=1, distill=True, fp8_quant=True)
    return {
        name: _published(dit, size, base),
        f"{name}-distill": _published(dit, size, distilled),
        f"{name}-distill-fp8": _published(dit, size, quantised),
    }


PRESETS: dict[str, WorldConfig] = {
    **_family("magi1-4.5b", _DIT_4_5B, (720, 720), base_steps=64, distilled_steps=64),
    **_family("magi1-24b", _DIT_24B, (720, 1280), base_steps=32, distilled_steps=16),
}
"""the published models by name, with the sizes and steps that their files ship with"""
