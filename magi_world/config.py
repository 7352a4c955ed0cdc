"""Configuration: one frozen dataclass a part; a value that cannot work cannot be built.

Field names of :class:`DiTConfig` and :class:`VAEConfig` are those of MAGI-1's own JSON sections
(``model_config`` and ``ddconfig``), so its files are read without a table of renames.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from magi_world.config_section import Section as _Section
from magi_world.config_section import is_number as _is_number
from magi_world.config_section import require as _require
from magi_world.config_section import require_counts as _require_counts
from magi_world.config_section import require_flags as _require_flags
from magi_world.config_section import require_texts as _require_texts
from magi_world.errors import ConfigError
from magi_world.magi1_config import Magi1Config, T5Config

_TRANSFORMS = ("identity", "piecewise", "square")  # those of time_grid
_PREDICTIONS = ("velocity", "clean")


@dataclass(frozen=True, kw_only=True)
class DiTConfig(_Section):
    """Shape of the video DiT (MAGI-1 paper, section 2; spec section 2.1)."""

    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    num_attention_heads: int
    num_query_groups: int
    kv_channels: int
    """width of one head"""
    caption_channels: int
    """width of one caption token from the text encoder"""
    caption_max_length: int
    """rows of the learned null caption, and the most tokens a caption may have"""
    in_channels: int = 16
    out_channels: int = 16
    patch_size: int = 2
    t_patch_size: int = 1
    cond_hidden_ratio: float = 0.25
    xattn_cond_hidden_ratio: float = 1.0
    cond_gating_ratio: float = 1.0
    gated_linear_unit: bool = False
    """SwiGLU instead of GELU"""
    x_rescale_factor: float = 1.0
    half_channel_vae: bool = False
    """latents have 16 channels but the model 32: the input is doubled along channels"""
    previous_chunk: bool = False
    """the model reads the chunk before beside the noisy one, as more input channels, and says at
    every place how much of it stays; not in MAGI-1, whose chunks are a second long"""
    previous_around: int = 0
    """rows and columns around a token's own places from which it reads the previous chunk too: what
    moves comes from next door, and rotary angles tell neighbours apart but softly"""
    predicts: str = "velocity"
    """what the last layer gives: the velocity, as MAGI-1's does, or the "clean" chunk, from which
    the velocity follows. A one-step sampler of velocities must undo the noise exactly"""
    layernorm_epsilon: float = 1e-6
    apply_layernorm_1p: bool = True
    params_dtype: str = "float32"
    model_name: str = "videodit_ardf"

    def __post_init__(self) -> None:
        _require_counts(
            self, "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads",
            "num_query_groups", "kv_channels", "caption_channels", "caption_max_length",
            "in_channels", "out_channels", "patch_size",
        )  # fmt: skip
        _require_flags(self, "gated_linear_unit", "half_channel_vae")
        for name in ("cond_hidden_ratio", "x_rescale_factor", "layernorm_epsilon"):
            value = getattr(self, name)
            positive = _is_number(value) and value > 0
            _require(positive, f"{name} {value!r}: a number above 0 is needed")
        _require(self.condition_size >= 1, f"cond_hidden_ratio {self.cond_hidden_ratio} is too low")
        _require(
            self.model_name == "videodit_ardf",
            f"model_name {self.model_name!r}: only 'videodit_ardf' is known",
        )
        heads, groups = self.num_attention_heads, self.num_query_groups
        _require(heads % groups == 0, f"{heads} heads are not a multiple of {groups} query groups")
        _require(
            heads * self.kv_channels == self.hidden_size,
            f"hidden_size {self.hidden_size} is not {heads} heads of {self.kv_channels} channels",
        )
        _require(
            self.hidden_size % 8 == 0,
            f"hidden_size {self.hidden_size} is not a multiple of 8 (interleave of linear_proj)",
        )
        _require(self.kv_channels >= 8, f"kv_channels {self.kv_channels} is below 8 (rotary bands)")
        _require(self.t_patch_size == 1, f"t_patch_size {self.t_patch_size}: only 1 is supported")
        _require(self.apply_layernorm_1p, "apply_layernorm_1p False is not supported")
        ratios = (self.xattn_cond_hidden_ratio, self.cond_gating_ratio)
        _require(ratios == (1.0, 1.0), f"condition ratios {ratios}: only (1.0, 1.0) is supported")
        _require(
            self.predicts in _PREDICTIONS,
            f"predicts {self.predicts!r} is not one of {_PREDICTIONS}",
        )
        around = self.previous_around
        _require(
            isinstance(around, int) and not isinstance(around, bool) and around >= 0,
            f"previous_around {around!r}: a whole number, 0 or more, is needed",
        )
        _require(self.previous_chunk or not around, "previous_around needs previous_chunk")
        if self.previous_chunk:
            _require(
                not self.half_channel_vae, "previous_chunk and half_channel_vae do not go together"
            )
            _require(self.predicts == "clean", "previous_chunk needs predicts = 'clean'")

    @property
    def condition_size(self) -> int:
        """Width of the adaLN condition vector."""
        return int(self.hidden_size * self.cond_hidden_ratio)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents outside the model."""
        return self.in_channels // 2 if self.half_channel_vae else self.in_channels


@dataclass(frozen=True, kw_only=True)
class VAEConfig(_Section):
    """Shape of the ViT VAE (spec section 1.1, MAGI-1's ``ddconfig``)."""

    video_size: int
    """native height and width in pixels of the position table"""
    video_length: int
    """native frames of the position table"""
    patch_size: int
    patch_length: int
    embed_dim: int
    depth: int
    num_heads: int
    z_chans: int = 16
    in_chans: int = 3
    double_z: bool = True
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    with_cls_token: bool = True
    norm_code: bool = False
    ln_in_attn: bool = True
    conv_last_layer: bool = True
    use_rope: bool = False
    use_final_proj: bool = False

    def __post_init__(self) -> None:
        _require_counts(
            self, "video_size", "video_length", "patch_size", "patch_length", "embed_dim", "depth",
            "num_heads", "z_chans", "in_chans",
        )  # fmt: skip
        _require(
            self.embed_dim % self.num_heads == 0,
            f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}",
        )
        _require(
            self.video_size % self.patch_size == 0 and self.video_length % self.patch_length == 0,
            f"video {self.video_length}x{self.video_size} is not a multiple of the patch "
            f"{self.patch_length}x{self.patch_size}",
        )
        patch_volume = self.patch_size**2 * self.patch_length
        _require(
            self.use_final_proj or self.embed_dim % patch_volume == 0,
            f"embed_dim {self.embed_dim} is not a multiple of the patch volume {patch_volume}; "
            "set use_final_proj",
        )
        for name, allowed in (
            ("double_z", True), ("with_cls_token", True), ("norm_code", False),
            ("conv_last_layer", True), ("use_rope", False),
        ):  # fmt: skip
            _require(
                getattr(self, name) is allowed,
                f"{name}={getattr(self, name)}: only {allowed} is supported, as published",
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Native latent grid (time, rows, columns) of the position table."""
        side = self.video_size // self.patch_size
        return self.video_length // self.patch_length, side, side


@dataclass(frozen=True, kw_only=True)
class TextConfig(_Section):
    """The byte-level T5-style text encoder of the embedded worlds."""

    d_model: int
    """width, the ``caption_channels`` of the DiT"""
    d_ff: int
    num_layers: int
    num_heads: int
    d_kv: int
    max_bytes: int = 256
    """longest prompt in UTF-8 bytes; a longer one is refused, never cut"""

    def __post_init__(self) -> None:
        _require_counts(self, "d_model", "d_ff", "num_layers", "num_heads", "d_kv", "max_bytes")
        _require(self.d_kv % 2 == 0, f"d_kv {self.d_kv} must be even: it is rotated in two halves")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig(_Section):
    """How a world is sampled: schedule, history and guidance."""

    chunk_width: int = 1
    """latent frames per chunk"""
    kv_range: int = 8
    """chunks, itself included, that a chunk may see"""
    num_steps: int = 4
    """denoising steps per chunk"""
    clean_t: float = 0.9999
    """timestep of the clean pass"""
    shift: float = 3.0
    """shift of the time grid, see :func:`magi_world.sampling.schedule.time_grid`"""
    transform: str = "square"
    """map of the uniform grid in front of the shift"""
    scale_factor: float = 0.18215
    """latents = VAE mean times this"""
    guidance_scale: float = 1.0
    """classifier-free guidance on the prompt; 1 switches it off (one pass)"""
    null_prompt_tokens: int = 50
    """rows of the null caption that stand for "no prompt" """
    clean_null_caption: bool = False
    """MAGI-1 checkpoints run clean passes and prefixes with the null caption"""

    def __post_init__(self) -> None:
        _require_counts(self, "chunk_width", "kv_range", "num_steps", "null_prompt_tokens")
        _require_flags(self, "clean_null_caption")
        for name in ("shift", "scale_factor"):
            value = getattr(self, name)
            _require(_is_number(value) and value > 0, f"{name} {value!r} is not a positive number")
        for name in ("clean_t", "guidance_scale"):
            value = getattr(self, name)
            _require(_is_number(value), f"{name} {value!r}: a finite number is needed")
        _require(
            self.transform in _TRANSFORMS,
            f"transform {self.transform!r} is not one of {_TRANSFORMS}",
        )
        _require(0.0 < self.clean_t <= 1.0, f"clean_t {self.clean_t} is outside (0, 1]")


@dataclass(frozen=True, kw_only=True)
class OutcomeConfig(_Section):
    """The reward and termination heads that read the clean pass."""

    hidden_size: int = 128
    num_queries: int = 4
    """learned queries that pool the tokens of a chunk"""
    signals: tuple[str, ...] = ()
    """extra quantities predicted per chunk, in this order"""
    rewards: tuple[str, ...] = ()
    """whose rewards are predicted, the card's players in their order; empty: one for all"""

    def __post_init__(self) -> None:
        _require_counts(self, "hidden_size", "num_queries")
        _require_texts(self, "signals", "rewards")
        _require(
            self.hidden_size % self.num_heads == 0,
            f"hidden_size {self.hidden_size} is not a multiple of its {self.num_heads} heads "
            "(one for every 32 channels)",
        )

    @property
    def num_rewards(self) -> int:
        """Rewards predicted per chunk."""
        return len(self.rewards) or 1

    @property
    def num_heads(self) -> int:
        """Attention heads, of 32 channels or a little more."""
        return max(1, self.hidden_size // 32)


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """Everything that fixes the computation of a world."""

    dit: DiTConfig
    vae: VAEConfig
    sampling: SamplingConfig
    height: int
    """frame height in pixels"""
    width: int
    """frame width in pixels"""
    fps: int
    """frames per second of the real game"""
    text: TextConfig | T5Config | None = None
    outcome: OutcomeConfig | None = None
    magi1: Magi1Config | None = None
    """settings of a MAGI-1 checkpoint, None for every other world"""
    version: int = field(default=1)

    def __post_init__(self) -> None:
        for part, kind in (("dit", DiTConfig), ("vae", VAEConfig), ("sampling", SamplingConfig)):
            _require(isinstance(getattr(self, part), kind), f"the section {part!r} is missing")
        _require_counts(self, "height", "width", "fps")
        cell = self.vae.patch_size * self.dit.patch_size
        _require(
            self.height % cell == 0 and self.width % cell == 0,
            f"frames of {self.height}x{self.width} are not a multiple of {cell} pixels",
        )
        _require(
            self.vae.z_chans == self.dit.latent_channels,
            f"the VAE has {self.vae.z_chans} channels, the DiT {self.dit.latent_channels}",
        )
        rows = self.dit.caption_max_length
        _require(
            self.sampling.null_prompt_tokens <= rows,
            f"null_prompt_tokens {self.sampling.null_prompt_tokens} is above the "
            f"caption_max_length {rows} of the DiT",
        )
        if isinstance(self.text, TextConfig):
            _require(
                self.text.max_bytes < rows,
                f"prompts of {self.text.max_bytes} bytes and an end token do not fit the "
                f"caption_max_length {rows} of the DiT",
            )
        if isinstance(self.text, T5Config):
            _require(
                self.text.max_tokens <= rows,
                f"prompts of {self.text.max_tokens} tokens do not fit the caption_max_length "
                f"{rows} of the DiT",
            )
        if self.text is not None:
            _require(
                self.text.d_model == self.dit.caption_channels,
                f"the text encoder is {self.text.d_model} wide, the DiT expects "
                f"{self.dit.caption_channels}",
            )
        if self.magi1 is not None:
            self.magi1.check()
            _require(
                self.magi1.temporal_downsample_factor == self.vae.patch_length,
                f"temporal_downsample_factor {self.magi1.temporal_downsample_factor} is not the "
                f"patch_length {self.vae.patch_length} of the VAE",
            )

    @property
    def chunk_frames(self) -> int:
        """Frames in one chunk."""
        return self.sampling.chunk_width * self.vae.patch_length

    @property
    def frames_shape(self) -> tuple[int, int, int, int]:
        """Shape of the frames of one chunk: frames, rows, columns, colours."""
        return (self.chunk_frames, self.height, self.width, 3)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Shape of one chunk of latents: channels, latent frames, rows, columns."""
        return (
            self.vae.z_chans,
            self.sampling.chunk_width,
            self.height // self.vae.patch_size,
            self.width // self.vae.patch_size,
        )

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens of one chunk in the DiT."""
        _, frames, rows, columns = self.latent_shape
        return frames * (rows // self.dit.patch_size) * (columns // self.dit.patch_size)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from the nested plain data of a card.

        Raises:
            ConfigError: a missing section, an unknown key or a value that cannot work.
        """
        sections: dict[str, type[_Section]] = {
            "dit": DiTConfig, "vae": VAEConfig, "sampling": SamplingConfig,
            "text": TextConfig, "outcome": OutcomeConfig, "magi1": Magi1Config,
        }  # fmt: skip
        _require(isinstance(values, Mapping), f"config {values!r} is no table of sections")
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        _require(not unknown, f"WorldConfig: unknown keys {unknown}; known are {sorted(known)}")
        text = values.get("text")
        if isinstance(text, Mapping) and "max_tokens" in text:
            sections["text"] = T5Config
        arguments: dict[str, Any] = {
            key: sections[key].from_dict(value) if key in sections and value is not None else value
            for key, value in values.items()
        }
        try:
            return cls(**arguments)
        except TypeError as error:
            raise ConfigError(f"WorldConfig: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the nested plain data of a card."""
        result: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "magi1" and value is None:
                continue  # cards of other worlds do not speak of it
            result[f.name] = value.to_dict() if isinstance(value, _Section) else value
        return result
