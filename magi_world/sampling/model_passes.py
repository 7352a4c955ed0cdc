"""Counters of what the model did: chunk-passes by kind and floating point operations.

A chunk-pass is one chunk in one forward of the DiT.
"""

from dataclasses import dataclass, field, fields

from magi_world.config import DiTConfig
from magi_world.planning.flops import ForwardFlops, caption_flops
from magi_world.sampling.guidance import PassKind


@dataclass
class ModelPasses:
    """What ran since the counters were made, beside what the published code would have run."""

    denoising: dict[str, int] = field(
        default_factory=lambda: {kind.value: 0 for kind in PassKind},
    )
    """chunk-passes of chunks being denoised, by kind"""
    clean: int = 0
    """chunk-passes of finished chunks and of prefix chunks"""
    published_denoising: int = 0
    """chunk-passes of chunks being denoised in the published code"""
    published_clean: int = 0
    """chunk-passes of finished chunks and of prefix chunks in the published code"""
    captions: int = 0
    """captions whose cross-attention keys and values were computed"""
    parts: dict[str, int] = field(default_factory=dict)
    """matrix products and attention by part, two operations a multiply-add: the fields of
    :class:`magi_world.planning.flops.ForwardFlops`, and captions"""

    @property
    def flops(self) -> int:
        """All parts."""
        return sum(self.parts.values())

    def add(self, forward: ForwardFlops) -> None:
        """Count the operations of one chunk-pass."""
        for part in fields(forward):
            self._add(part.name, getattr(forward, part.name))

    def add_caption(self, config: DiTConfig, tokens: int) -> None:
        """Count keys and values of a caption of so many tokens."""
        self.captions += 1
        self._add("captions", caption_flops(config, tokens))

    def _add(self, part: str, flops: int) -> None:
        self.parts[part] = self.parts.get(part, 0) + flops

    @property
    def run(self) -> int:
        """All chunk-passes that ran."""
        return sum(self.denoising.values()) + self.clean

    @property
    def published(self) -> int:
        """All chunk-passes of the published code."""
        return self.published_denoising + self.published_clean

    @property
    def saved(self) -> float:
        """Share of the published chunk-passes of denoising that did not run."""
        ran = sum(self.denoising.values())
        return 1 - ran / self.published_denoising if self.published_denoising else 0.0

    def __str__(self) -> str:
        return (
            f"{self.run} chunk-passes, the published code takes {self.published} "
            f"({self.saved:.1%} of those of denoising saved), {self.flops / 1e12:.3g} TFLOP"
        )
