"""Configurations that random checkpoints are made of: the published models, and tiny ones."""

from dataclasses import replace
from typing import Any

from magi_world.checkpoints.magi1_writing import published_config
from magi_world.checkpoints.published_config import PublishedConfig
from magi_world.checkpoints.random_weights import RandomCheckpoint
from magi_world.config import DiTConfig, VAEConfig
from magi_world.errors import ConfigError
from magi_world.magi1_config import Magi1Config
from magi_world.planning.presets import PRESETS

T5_XXL: dict[str, Any] = {
    "model_type": "t5", "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
    "num_heads": 64, "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
    "relative_attention_num_buckets": 32, "dropout_rate": 0.0, "layer_norm_epsilon": 1e-6,
    "pad_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": False,
}  # fmt: skip
"""the published text encoder, T5-v1.1-XXL"""

TINY_VAE = VAEConfig(
    video_size=64, video_length=12, patch_size=8, patch_length=4, embed_dim=64, depth=1,
    num_heads=2, mlp_ratio=2.0, use_final_proj=True,
)  # fmt: skip

# four layers: two of them are FP8 in a quantised model; widths that FP8 units of a card can take
_TINY_DIT = DiTConfig(
    num_layers=4, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, num_query_groups=2,
    kv_channels=16, caption_channels=32, caption_max_length=800, params_dtype="bfloat16",
)  # fmt: skip
_TINY_SIZE = 64  # pixels
_TINY_FRAMES, _TINY_STEPS = 48, 8


def _tiny(**settings: Any) -> PublishedConfig:
    magi1 = Magi1Config(num_steps=_TINY_STEPS, num_frames=_TINY_FRAMES, **settings)
    return PublishedConfig(dit=_TINY_DIT, magi1=magi1, height=_TINY_SIZE, width=_TINY_SIZE)


_TINY: dict[str, PublishedConfig] = {
    "tiny": _tiny(),
    "tiny-distill": _tiny(cfg_number=1, distill=True),
    "tiny-distill-fp8": _tiny(cfg_number=1, distill=True, fp8_quant=True),
}

NAMES = (*_TINY, *PRESETS)
"""names of all configurations"""


def tiny_t5(width: int) -> dict[str, Any]:
    """A text encoder of one layer whose captions have this width."""
    small = {"d_model": width, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
    return {**T5_XXL, **small, "vocab_size": 512}


def random_preset(name: str) -> RandomCheckpoint:
    """The parts of a checkpoint by name.

    Raises:
        ConfigError: no such name.
    """
    if name in _TINY:
        tiny = _TINY[name]
        return RandomCheckpoint(config=tiny, vae=TINY_VAE, t5=tiny_t5(tiny.dit.caption_channels))
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is not one of {', '.join(NAMES)}")
    world = PRESETS[name]
    return RandomCheckpoint(config=published_config(world), vae=world.vae, t5=T5_XXL)


def random_like(config: PublishedConfig, vae: VAEConfig | None = None) -> RandomCheckpoint:
    """The parts of a checkpoint of any DiT; VAE and text encoder are tiny unless a VAE is given."""
    channels = config.dit.latent_channels
    chosen = replace(TINY_VAE, z_chans=channels) if vae is None else vae
    return RandomCheckpoint(config=config, vae=chosen, t5=tiny_t5(config.dit.caption_channels))
