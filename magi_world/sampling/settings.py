"""How a video is sampled: what a caller may choose, and what follows from the world."""

import math
from dataclasses import dataclass, field, replace
from typing import Self

from magi_world.config import WorldConfig
from magi_world.errors import ConfigError
from magi_world.magi1_config import Magi1Config
from magi_world.sampling import schedule
from magi_world.sampling.captions import Compat
from magi_world.sampling.guidance import (
    PREVIOUS_SHARE,
    Guidance,
    PromptGuidance,
    SinglePassGuidance,
    ThreePassGuidance,
)


@dataclass(frozen=True, kw_only=True)
class Savings:
    """What is left out or kept because it cannot change the result; each can be switched off."""

    skip_passes: bool = True
    """passes without weight that no other chunk needs are not run"""
    fixed_cache: bool = True
    """the cache holds what can still be seen, not the whole video"""
    caption_kv: bool = True
    """keys and values of a prompt are computed once, not in every pass"""
    unseen_prefix: bool = True
    """prefix chunks that no generated chunk can see are not run"""

    @classmethod
    def none(cls) -> Self:
        """All of them switched off."""
        return cls(skip_passes=False, fixed_cache=False, caption_kv=False, unseen_prefix=False)


@dataclass(frozen=True, kw_only=True)
class GenerateSettings:
    """What a caller may choose for a video; None takes the world's own value."""

    num_steps: int | None = None
    """denoising steps per chunk"""
    window: int | None = None
    """chunks denoised together; it divides the steps"""
    kv_ranges: tuple[int, ...] | None = None
    """KV range of every noise stage, noisiest first; empty: the whole video"""
    clean_kv_range: int | None = None
    """KV range of a clean pass; -1 takes the last of ``kv_ranges``"""
    max_kv_range: int | None = None
    """largest KV range that a chunk may bring with it; None: the largest of ``kv_ranges``"""
    clean_t: float | None = None
    """timestep of clean passes"""
    cfg_t_range: tuple[float, ...] | None = None
    """timesteps at which the bands of the guidance scales begin"""
    prev_chunk_scales: tuple[float, ...] | None = None
    """guidance on the previous chunks, one a band"""
    text_scales: tuple[float, ...] | None = None
    """guidance on the prompt, one a band"""
    near_clean_threshold: float | None = None
    """timestep above which the cleanest chunk of a distilled model is blended"""
    near_clean_share: float = PREVIOUS_SHARE
    """share with history in that blend"""
    guidance_scale: float | None = None
    """guidance on the prompt of worlds other than MAGI-1's"""
    shortcut_mode: str | None = None
    """order of the step sizes with 12 steps"""
    seed: int | None = None
    """seeds the noise"""
    compat: Compat = None
    """"magi-1": everything as the published code does it, defects included"""
    kv_on_host: bool = False
    """the cache lies in host memory, two layers of it on the device"""
    savings: Savings = field(default_factory=Savings)


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Everything that decides how a video is sampled; built by :func:`sampler_config`."""

    guidance: Guidance
    num_steps: int
    window: int
    chunk_width: int
    kv_ranges: tuple[int, ...]
    clean_kv_range: int
    max_kv_range: int | None
    """None: the whole video"""
    clean_t: float
    distilled: bool = False
    """the model is told its step size"""
    clean_null_caption: bool = False
    """clean passes read the null caption"""
    clean_dropped: bool = True
    """where the null caption is read with history, the condition vector is that of a dropped
    caption; MAGI-1's distilled models take that of a present one"""
    near_clean_threshold: float = 0.3
    shift: float = schedule.SHIFT
    transform: str = "square"
    shortcut_mode: str = "8,16,16"
    seed: int = 0
    compat: Compat = None
    kv_on_host: bool = False
    savings: Savings = field(default_factory=Savings)

    def __post_init__(self) -> None:
        schedule.check_window(self.num_steps, self.window)
        schedule.check_kv_ranges(self.num_steps, self.kv_ranges)
        limit = self.max_kv_range
        if limit is not None and not self.kv_ranges:
            raise ConfigError(f"max_kv_range {limit} with no kv_ranges: those see the whole video")
        if limit is not None and (not isinstance(limit, int) or limit < self.own_kv_range):
            raise ConfigError(
                f"max_kv_range {limit!r}: a whole number, {self.own_kv_range} or more, is needed, "
                f"the largest of kv_ranges {list(self.kv_ranges)} and of the clean pass"
            )
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ConfigError(f"seed {self.seed!r}: a whole number, 0 or more, is needed")

    @property
    def own_kv_range(self) -> int:
        """Largest of ``kv_ranges`` and of the clean pass."""
        return max(1, *self.kv_ranges, self.clean_kv_range)

    def step_feature(self, interval: float) -> float | None:
        """Step-size feature of a distilled model: twice the steps in a quarter of the schedule.

        With 12 steps, which are not all alike, ``interval`` is the relative length of this one
        (golden README section 3.2). None for other models.
        """
        if not self.distilled:
            return None
        return 4 / interval * 2 if self.num_steps == 12 else self.num_steps / 4 * 2

    def check_chunk_ranges(self, kv_ranges: tuple[int, ...]) -> None:
        """Refuse KV ranges of a single chunk.

        Raises:
            ConfigError: they do not divide the steps, or see more than the cache was sized for.
        """
        schedule.check_kv_ranges(self.num_steps, kv_ranges)
        limit = self.max_kv_range
        if limit is not None and (not kv_ranges or max(kv_ranges) > limit):
            asked = max(kv_ranges) if kv_ranges else "the whole video"
            raise ConfigError(
                f"KV ranges {list(kv_ranges)} of a chunk ask for {asked}, the cache was sized for "
                f"{limit}: give max_kv_range at the start"
            )


def sampler_config(config: WorldConfig, settings: GenerateSettings | None = None) -> SamplerConfig:
    """Settle how a world's videos are sampled.

    Raises:
        ConfigError: a setting that cannot work, contradicts another or is not the world's.
    """
    settings = GenerateSettings() if settings is None else settings
    if config.magi1 is not None:
        if settings.guidance_scale is not None:
            raise ConfigError(
                "guidance_scale is for other worlds: MAGI-1's are prev_chunk_scales and text_scales"
            )
        return magi1_sampler_config(_with(config.magi1, settings), settings)
    return _embedded(config, settings)


def magi1_sampler_config(
    magi1: Magi1Config, settings: GenerateSettings | None = None
) -> SamplerConfig:
    """How a MAGI-1 checkpoint is sampled by its own settings; see :func:`sampler_config`.

    Of ``settings`` only what ``magi1`` does not have is read.
    """
    settings = GenerateSettings() if settings is None else settings
    guidance: Guidance
    if magi1.cfg_number == 1:
        share = settings.near_clean_share
        if not (math.isfinite(share) and 0 <= share <= 1):
            raise ConfigError(f"near_clean_share {share} is outside [0, 1]")
        guidance = SinglePassGuidance(threshold=magi1.near_clean_threshold, previous_share=share)
    else:
        guidance = ThreePassGuidance(
            bounds=magi1.cfg_t_range,
            previous_scales=magi1.prev_chunk_scales,
            text_scales=magi1.text_scales,
        )
    return SamplerConfig(
        guidance=guidance,
        num_steps=magi1.num_steps,
        window=magi1.window,
        chunk_width=magi1.chunk_width,
        kv_ranges=magi1.noise2clean_kvrange,
        clean_kv_range=magi1.clean_chunk_kvrange,
        max_kv_range=magi1.max_kv_range if settings.max_kv_range is None else settings.max_kv_range,
        clean_t=magi1.clean_t,
        distilled=magi1.distill,
        clean_null_caption=True,
        clean_dropped=False,  # the null pass of base models is "dropped" by itself
        near_clean_threshold=magi1.near_clean_threshold,
        shortcut_mode=magi1.shortcut_mode,
        seed=magi1.seed,
        compat=settings.compat,
        kv_on_host=settings.kv_on_host,
        savings=settings.savings,
    )


_MAGI1_NAMES = {
    "num_steps": "num_steps",
    "window": "window",
    "kv_ranges": "noise2clean_kvrange",
    "clean_kv_range": "clean_chunk_kvrange",
    "clean_t": "clean_t",
    "cfg_t_range": "cfg_t_range",
    "prev_chunk_scales": "prev_chunk_scales",
    "text_scales": "text_scales",
    "near_clean_threshold": "near_clean_threshold",
    "shortcut_mode": "shortcut_mode",
    "seed": "seed",
}
"""a setting, and the field of the checkpoint's configuration that it replaces"""


def _with(magi1: Magi1Config, settings: GenerateSettings) -> Magi1Config:
    given = {field: getattr(settings, name) for name, field in _MAGI1_NAMES.items()}
    changed = replace(magi1, **{name: value for name, value in given.items() if value is not None})
    changed.check()
    return changed


def _embedded(config: WorldConfig, settings: GenerateSettings) -> SamplerConfig:
    for name in (
        "compat", "cfg_t_range", "prev_chunk_scales", "text_scales", "near_clean_threshold",
        "shortcut_mode",
    ):  # fmt: skip
        if getattr(settings, name) is not None:
            raise ConfigError(f"{name} is for MAGI-1 checkpoints, and this world is none")
    if config.dit.previous_chunk and settings.window not in (None, 1):
        raise ConfigError(
            f"window {settings.window}: this world reads its previous chunk finished, "
            "so its window is 1"
        )
    sampling = config.sampling
    ranges = (sampling.kv_range,) if settings.kv_ranges is None else settings.kv_ranges
    clean = sampling.kv_range if settings.clean_kv_range is None else settings.clean_kv_range
    scale = sampling.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    limit = settings.max_kv_range
    if limit is None and ranges:
        limit = max(*ranges, clean)
    return SamplerConfig(
        guidance=PromptGuidance(scale=scale),
        num_steps=sampling.num_steps if settings.num_steps is None else settings.num_steps,
        window=1 if settings.window is None else settings.window,
        chunk_width=sampling.chunk_width,
        kv_ranges=ranges,
        clean_kv_range=clean,
        max_kv_range=limit,
        clean_t=sampling.clean_t if settings.clean_t is None else settings.clean_t,
        clean_null_caption=sampling.clean_null_caption,
        shift=sampling.shift,
        transform=sampling.transform,
        seed=0 if settings.seed is None else settings.seed,
        kv_on_host=settings.kv_on_host,
        savings=settings.savings,
    )
