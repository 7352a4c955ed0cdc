"""The passes of the model in the middle of a long video.

Every window is full there and every chunk sees as many chunks as its KV range allows, so one stage
(its last step finishes one chunk) says what a chunk costs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from magi_world.config import DiTConfig, WorldConfig
from magi_world.errors import ConfigError
from magi_world.planning.flops import forward_flops
from magi_world.sampling.guidance import (
    PassKind,
    SinglePassGuidance,
    ThreePassGuidance,
    plan_passes,
)
from magi_world.sampling.schedule import kv_width, time_grid
from magi_world.sampling.settings import GenerateSettings, SamplerConfig, sampler_config

PROMPT_TOKENS = 128
"""caption tokens that plans count with: two or three sentences"""


@dataclass(frozen=True)
class _Chunk:
    """A chunk of a full window, as the choice of passes sees it."""

    ahead: int
    width: int
    cleanest: bool
    slot: int = 0
    clean: bool = False


@dataclass(frozen=True)
class SteadyState:
    """One stage, at whose end one chunk leaves the window."""

    sampler: SamplerConfig
    null_tokens: int
    """rows of the null caption"""

    @classmethod
    def of(
        cls,
        config: WorldConfig,
        settings: GenerateSettings | None = None,
        *,
        cfg_number: int | None = None,
    ) -> "SteadyState":
        """The steady state of a model.

        Args:
            config: the model.
            settings: how it is sampled; None takes what its configuration says.
            cfg_number: passes of one guided velocity, 1 or 3; None takes the model's.

        Raises:
            ConfigError: settings that cannot work, or no KV range, so that there is no steady
                state.
        """
        sampler = sampler_config(config, settings)
        if not sampler.kv_ranges:
            raise ConfigError("a chunk sees the whole video: plan with KV ranges")
        if cfg_number == 1 and isinstance(sampler.guidance, ThreePassGuidance):
            sampler = replace(sampler, guidance=SinglePassGuidance())
        if cfg_number == 3 and not isinstance(sampler.guidance, ThreePassGuidance):
            raise ConfigError("cfg 3: a model for one pass is not run with three")
        return cls(sampler, config.sampling.null_prompt_tokens)

    @property
    def cfg_number(self) -> int:
        """Passes of one guided velocity."""
        return len(self.sampler.guidance.always)

    @property
    def clean_range(self) -> int:
        """KV range of the clean pass."""
        own = self.sampler.clean_kv_range
        return self.sampler.kv_ranges[-1] if own == -1 else own

    @property
    def clean_passes_published(self) -> int:
        """Forwards of a finished chunk in the published code: one in each pass with history."""
        return sum(kind.has_history for kind in self.sampler.guidance.always)

    @property
    def kv_chunks(self) -> int:
        """Chunks that the cache has room for."""
        return max(*self.sampler.kv_ranges, self.clean_range) - 1 + self.sampler.window

    def calls(self, *, skip: bool) -> Iterator[list[tuple[PassKind, int]]]:
        """For every step of a stage its forwards: kind, and chunks that each chunk of it sees."""
        steps, window, ranges = (
            self.sampler.num_steps, self.sampler.window, self.sampler.kv_ranges,
        )  # fmt: skip
        grid = time_grid(
            steps,
            shift=self.sampler.shift,
            transform=self.sampler.transform,
            shortcut_mode=self.sampler.shortcut_mode,
        )
        per_stage = steps // window
        for step in range(per_stage):
            # the first chunk of a window is the cleanest
            indices = [(window - 1 - ahead) * per_stage + step for ahead in range(window)]
            widths = [kv_width(index, steps, ranges) or 1 for index in indices]
            chunks = [_Chunk(ahead, width, ahead == 0) for ahead, width in enumerate(widths)]
            passes = plan_passes(
                chunks, [grid[index] for index in indices], self.sampler.guidance, skip=skip
            )
            yield [
                (kind, widths[row] if kind.has_history else 1)
                for kind, rows, _ in passes
                for row in rows
            ]

    def chunk_passes(self, *, skip: bool) -> int:
        """Forwards of one chunk on its way from noise to clean."""
        return sum(len(call) for call in self.calls(skip=skip))

    def flops(self, dit: DiTConfig, tokens: int, *, skip: bool) -> int:
        """Operations of one chunk of so many tokens, its clean pass included."""

        def one(seen: int, *, prompted: bool) -> int:
            caption = PROMPT_TOKENS if prompted else self.null_tokens
            return forward_flops(
                dit, tokens=tokens, keys=seen * tokens, caption_tokens=caption,
                distilled=self.sampler.distilled,
            ).total  # fmt: skip

        denoising = sum(
            one(seen, prompted=kind.prompted)
            for call in self.calls(skip=skip)
            for kind, seen in call
        )
        clean = 1 if skip else self.clean_passes_published
        return denoising + clean * one(self.clean_range, prompted=False)
