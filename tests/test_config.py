# mypy: disable-error-code="dict-item"
"""Configuration: what cannot work cannot be built, and plain data goes in and out unchanged."""

import json
from dataclasses import FrozenInstanceError, asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magi_world.config import (
    DiTConfig,
    OutcomeConfig,
    SamplingConfig,
    TextConfig,
    VAEConfig,
    WorldConfig,
)
from magi_world.errors import ConfigError
from tests.tiny_world import tiny_card

DIT = {
    "num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 32, "num_attention_heads": 2,
    "num_query_groups": 1, "kv_channels": 16, "caption_channels": 16, "caption_max_length": 257,
}  # fmt: skip
VAE = {
    "video_size": 64, "video_length": 4, "patch_size": 8, "patch_length": 4, "embed_dim": 32,
    "depth": 1, "num_heads": 2, "use_final_proj": True,
}  # fmt: skip
TEXT = {"d_model": 16, "d_ff": 16, "d_kv": 8, "num_heads": 2, "num_layers": 1}


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        (DiTConfig, {**DIT, "num_query_groups": 3}, "2 heads are not a multiple of 3"),
        (DiTConfig, {**DIT, "num_query_groups": 0}, "num_query_groups 0"),
        (DiTConfig, {**DIT, "num_layers": 0}, "num_layers 0"),
        (OutcomeConfig, {"hidden_size": 100}, "hidden_size 100 is not a multiple of its 3 heads"),
        (DiTConfig, {**DIT, "hidden_size": 40}, "hidden_size 40 is not 2 heads of 16"),
        (DiTConfig, {**DIT, "num_attention_heads": 3, "num_query_groups": 1, "kv_channels": 12,
                     "hidden_size": 36}, "hidden_size 36 is not a multiple of 8"),
        (DiTConfig, {**DIT, "kv_channels": 4, "num_attention_heads": 8}, "kv_channels 4 is below"),
        (DiTConfig, {**DIT, "t_patch_size": 2}, "t_patch_size 2"),
        (DiTConfig, {**DIT, "apply_layernorm_1p": False}, "apply_layernorm_1p"),
        (DiTConfig, {**DIT, "cond_gating_ratio": 0.5}, "condition ratios"),
        (DiTConfig, {**DIT, "predicts": "noise"}, "predicts 'noise' is not one of"),
        (DiTConfig, {**DIT, "previous_chunk": True, "predicts": "velocity"}, "needs predicts"),
        (DiTConfig, {**DIT, "previous_chunk": True, "half_channel_vae": True,
                     "predicts": "clean"}, "do not go together"),
        (DiTConfig, {**DIT, "previous_around": 1}, "needs previous_chunk"),
        (DiTConfig, {**DIT, "previous_around": 1.5}, "previous_around 1.5"),
        (DiTConfig, {**DIT, "hiden_size": 32}, r"DiTConfig: unknown keys \['hiden_size'\]"),
        (DiTConfig, {"num_layers": 2}, "DiTConfig: .*missing"),
        (DiTConfig, {**DIT, "num_attention_heads": "two"}, "num_attention_heads 'two'"),
        (VAEConfig, {**VAE, "num_heads": 3}, "embed_dim 32 is not a multiple of num_heads 3"),
        (VAEConfig, {**VAE, "num_heads": 0}, "num_heads 0"),
        (VAEConfig, {**VAE, "patch_size": 0}, "patch_size 0"),
        (VAEConfig, {**VAE, "video_size": 60}, "video 4x60 is not a multiple of the patch 4x8"),
        (VAEConfig, {**VAE, "video_length": 6}, "video 6x64"),
        (VAEConfig, {**VAE, "use_final_proj": False}, "set use_final_proj"),
        (VAEConfig, {**VAE, "use_rope": True}, "use_rope=True: only False is supported"),
        (VAEConfig, {**VAE, "double_z": False}, "double_z=False"),
        (TextConfig, {**TEXT, "d_kv": 7}, "d_kv 7 must be even"),
        (SamplingConfig, {"chunk_width": 0}, "chunk_width 0"),
        (SamplingConfig, {"kv_range": 0}, "kv_range 0"),
        (SamplingConfig, {"num_steps": 0}, "num_steps 0"),
        (SamplingConfig, {"clean_t": 1.5}, "clean_t 1.5"),
        (SamplingConfig, {"clean_t": 0.0}, "clean_t 0.0"),
        (SamplingConfig, {"scale_factor": 0.0}, "scale_factor 0.0"),
        (SamplingConfig, {"scale_factor": float("nan")}, "scale_factor nan"),
        (SamplingConfig, {"null_prompt_tokens": 0}, "null_prompt_tokens 0"),
        (SamplingConfig, {"transform": "cube"}, "transform 'cube'"),
        (SamplingConfig, {"shift": 0.0}, "shift 0.0"),
        (SamplingConfig, {"kv_range": "8"}, "kv_range '8'"),
        (SamplingConfig, {"shift": "3"}, "shift '3'"),
        (SamplingConfig, {"guidance_scale": float("nan")}, "guidance_scale nan"),
        (SamplingConfig, {"guidance_scale": "2"}, "guidance_scale '2'"),
        (SamplingConfig, {"clean_null_caption": "false"}, "clean_null_caption 'false'"),
        (OutcomeConfig, {"signals": "health"}, "signals 'health': a list of texts"),
        (OutcomeConfig, {"rewards": [1]}, "rewards .*: a list of texts"),
    ],
)  # fmt: skip
def test_what_cannot_work_cannot_be_built(section: Any, values: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        section.from_dict(values)


def changed(**sections: Any) -> dict[str, Any]:
    """The tiny world's configuration with values of some sections replaced."""
    config = tiny_card()["config"]
    for name, values in sections.items():
        config[name] = {**config[name], **values} if isinstance(values, dict) else values
    return dict(config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"height": 60}, "frames of 60x64 are not a multiple of 16 pixels"),
        ({"width": 72}, "frames of 64x72"),
        ({"vae": {"z_chans": 8}}, "the VAE has 8 channels, the DiT 16"),
        ({"text": {"d_model": 8}}, "the text encoder is 8 wide, the DiT expects 16"),
        ({"text": {"max_bytes": 300}}, "caption_max_length 257"),
        ({"sampling": {"null_prompt_tokens": 258}}, "null_prompt_tokens 258"),
        ({"sampler": {}}, r"WorldConfig: unknown keys \['sampler'\]"),
        ({"dit": None}, "the section 'dit' is missing"),
        ({"vae": 3}, "VAEConfig: 3 is no table of keys"),
        ({"text": ["d_model"]}, "TextConfig: .* is no table of keys"),
    ],
)
def test_parts_must_fit_each_other(change: dict[str, Any], words: str) -> None:
    values = {**tiny_card()["config"]}
    for name, value in change.items():
        old = values.get(name)
        both = isinstance(value, dict) and isinstance(old, dict)
        values[name] = {**old, **value} if both else value
    with pytest.raises(ConfigError, match=words):
        WorldConfig.from_dict(values)


def test_an_absent_section_is_named() -> None:
    values = changed()
    del values["vae"]
    with pytest.raises(ConfigError, match="vae"):
        WorldConfig.from_dict(values)


def test_geometry_of_the_tiny_world() -> None:
    config = WorldConfig.from_dict(tiny_card()["config"])
    assert config.chunk_frames == 4
    assert config.latent_shape == (16, 1, 8, 8)
    assert config.tokens_per_chunk == 16
    wide = WorldConfig.from_dict(changed(sampling={"chunk_width": 6}, height=96, width=160))
    assert wide.chunk_frames == 24
    assert wide.latent_shape == (16, 6, 12, 20)
    assert wide.tokens_per_chunk == 6 * 6 * 10


@given(st.integers(1, 3), st.integers(1, 9), st.lists(st.text(max_size=5), max_size=3))
def test_plain_data_survives_json(width: int, kv_range: int, signals: list[str]) -> None:
    values = changed(
        sampling={"chunk_width": width, "kv_range": kv_range}, outcome={"signals": signals}
    )
    config = WorldConfig.from_dict(values)
    assert config.outcome is not None and config.outcome.signals == tuple(signals)
    again = WorldConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config and asdict(again) == asdict(config)


def test_a_world_may_lack_text_and_outcome() -> None:
    config = WorldConfig.from_dict(changed(text=None, outcome=None))
    assert config.text is None and config.outcome is None
    assert WorldConfig.from_dict(config.to_dict()) == config


def test_configurations_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        OutcomeConfig().hidden_size = 3  # type: ignore[misc]
