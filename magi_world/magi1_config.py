"""Settings that only MAGI-1 checkpoints have: guidance, window, distillation, text encoder.

The published JSON spreads them over the sections ``runtime_config`` and ``engine_config``
(spec section 2.1). Defaults are the values of the published base model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from magi_world.config_section import (
    Section,
    is_number,
    require,
    require_counts,
    require_flags,
)

SHORTCUT_MODES = ("8,16,16", "16,16,8")
"""orders of step sizes inside a quarter of the 12-step schedule"""

_GUIDANCE_PASSES = (1, 3)


@dataclass(frozen=True, kw_only=True)
class T5Config(Section):
    """The prompt encoder of MAGI-1 checkpoints as the DiT sees it (spec section 3.1)."""

    d_model: int
    """width of a caption token, the ``caption_channels`` of the DiT"""
    max_tokens: int = 800
    """most tokens of a caption, special tokens included"""

    def __post_init__(self) -> None:
        require_counts(self, "d_model", "max_tokens")


@dataclass(frozen=True, kw_only=True)
class Magi1Config(Section):
    """How a MAGI-1 checkpoint is sampled (spec sections 2.1 and 4).

    Values that can never work are refused when it is built; :meth:`check` refuses the
    combinations that the released code does not start with either.
    """

    num_steps: int
    """denoising steps of a chunk"""
    window: int = 4
    """chunks denoised together, published as ``window_size``"""
    cfg_number: int = 3
    """model passes of one guided velocity: 3 for base models, 1 for distilled ones"""
    cfg_t_range: tuple[float, ...] = (0.0, 0.0217, 0.1, 0.3, 0.999)
    """timesteps at which the bands of the guidance scales begin"""
    prev_chunk_scales: tuple[float, ...] = (1.5, 1.5, 1.5, 1.0, 1.0)
    """guidance on the previous chunks, one a band"""
    text_scales: tuple[float, ...] = (7.5, 7.5, 7.5, 0.0, 0.0)
    """guidance on the prompt, one a band"""
    noise2clean_kvrange: tuple[int, ...] = (5, 4, 3, 2)
    """KV range of every noise stage, the noisiest first; empty: all previous chunks"""
    clean_chunk_kvrange: int = 1
    """KV range of the clean pass; -1 takes the last of ``noise2clean_kvrange``"""
    clean_t: float = 0.9999
    """timestep of the clean pass"""
    distill: bool = False
    """the model knows its step size"""
    fp8_quant: bool = False
    """the linears of the middle layers are FP8"""
    near_clean_threshold: float = 0.3
    """t above which a distilled model's cleanest chunk is blended with itself seen alone,
    published as ``distill_nearly_clean_chunk_threshold``"""
    shortcut_mode: str = "8,16,16"
    """order of the step sizes with 12 steps"""
    seed: int = 1234
    num_frames: int = 96
    """new frames when nothing else is asked for"""
    fps: int = 24
    chunk_width: int = 6
    """latent frames in a chunk"""
    scale_factor: float = 0.18215
    """latents = VAE mean times this"""
    temporal_downsample_factor: int = 4
    """frames in a latent frame"""

    # Read by the released engine alone and handed through, so that a file survives a round trip.
    t5_device: str = "cpu"
    distributed_backend: str = "nccl"
    distributed_timeout_minutes: int = 15
    pp_size: int = 1
    cp_size: int = 1
    cp_strategy: str = "none"
    ulysses_overlap_degree: int = 1
    kv_offload: bool = False
    enable_cuda_graph: bool = False

    def __post_init__(self) -> None:
        require_counts(
            self, "num_steps", "window", "num_frames", "fps", "chunk_width",
            "temporal_downsample_factor", "distributed_timeout_minutes", "pp_size", "cp_size",
        )  # fmt: skip
        require_flags(self, "distill", "fp8_quant", "kv_offload", "enable_cuda_graph")
        for name in ("t5_device", "distributed_backend", "cp_strategy"):
            value = getattr(self, name)
            require(isinstance(value, str), f"{name} {value!r}: text is needed")
        for name in ("seed", "ulysses_overlap_degree"):
            value, least = getattr(self, name), 0 if name == "seed" else -1
            require(
                isinstance(value, int) and not isinstance(value, bool) and value >= least,
                f"{name} {value!r}: a whole number, {least} or more, is needed",
            )
        require(
            self.cfg_number in _GUIDANCE_PASSES and not isinstance(self.cfg_number, bool),
            f"cfg_number {self.cfg_number!r} is not one of {_GUIDANCE_PASSES}",
        )
        require(
            self.shortcut_mode in SHORTCUT_MODES,
            f"shortcut_mode {self.shortcut_mode!r} is not one of {SHORTCUT_MODES}",
        )
        for name in ("clean_t", "near_clean_threshold", "scale_factor"):
            value = getattr(self, name)
            require(is_number(value), f"{name} {value!r}: a finite number is needed")
        require(0.0 < self.clean_t <= 1.0, f"clean_t {self.clean_t} is outside (0, 1]")
        require(self.scale_factor > 0, f"scale_factor {self.scale_factor} is not positive")
        self._check_guidance()
        self._check_ranges()

    def _check_guidance(self) -> None:
        for name in ("cfg_t_range", "prev_chunk_scales", "text_scales"):
            values = getattr(self, name)
            require(
                isinstance(values, tuple) and values != () and all(map(is_number, values)),
                f"{name} {values!r}: a list of numbers is needed",
            )
            require(
                len(values) == len(self.cfg_t_range),
                f"{name} has {len(values)} entries, cfg_t_range {len(self.cfg_t_range)}",
            )
        bounds = self.cfg_t_range
        require(
            bounds[0] == 0 and list(bounds) == sorted(set(bounds)),
            f"cfg_t_range {list(bounds)}: it must begin with 0 and rise",
        )

    def _check_ranges(self) -> None:
        ranges = self.noise2clean_kvrange
        require(
            isinstance(ranges, tuple) and all(_is_count(r) for r in ranges),
            f"noise2clean_kvrange {_plain(ranges)}: a list of whole numbers from 1 on is needed",
        )
        require(
            self.clean_chunk_kvrange == -1 or _is_count(self.clean_chunk_kvrange),
            f"clean_chunk_kvrange {self.clean_chunk_kvrange!r}: 1 or more, or -1, is needed",
        )

    def check(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            ConfigError: ``cfg_number`` against ``distill`` or ``fp8_quant``, or steps that the
                window or the list of KV ranges does not divide.
        """
        expected = 1 if self.distill or self.fp8_quant else 3
        require(
            self.cfg_number == expected,
            f"cfg_number {self.cfg_number} contradicts distill {self.distill} and fp8_quant "
            f"{self.fp8_quant}: it must be {expected}",
        )
        steps = self.num_steps
        require(
            steps % self.window == 0,
            f"window {self.window} does not divide the {steps} steps; allowed are "
            f"{[w for w in range(1, steps + 1) if steps % w == 0]}",
        )
        stages = len(self.noise2clean_kvrange)
        require(
            stages == 0 or steps % stages == 0,
            f"{steps} steps are not a multiple of the {stages} stages of noise2clean_kvrange "
            f"{list(self.noise2clean_kvrange)}",
        )

    @property
    def max_kv_range(self) -> int | None:
        """Largest KV range of any pass; None when a chunk sees the whole video."""
        if not self.noise2clean_kvrange:
            return None
        return max(*self.noise2clean_kvrange, self.clean_chunk_kvrange)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _plain(values: object) -> object:
    return list(values) if isinstance(values, Sequence) and not isinstance(values, str) else values
