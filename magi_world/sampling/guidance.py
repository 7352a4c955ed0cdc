"""Which passes of the model a chunk needs, and how their velocities are weighted.

A pass is told by two things: what a chunk reads as its caption, and whether it sees the chunks
before it. Guidance gives every chunk a weight for each kind of pass; a pass that no chunk weighs,
and whose keys and values no other chunk needs, need not run. The sources are golden README
section 4, spec sections 4.7 and 4.9 and equation 10 of the MAGI-1 paper.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import ClassVar, NamedTuple, Protocol

import torch

from magi_world.sampling import schedule

PREVIOUS_SHARE = 0.7
"""share of the velocity with history where a nearly clean chunk is blended"""


class PassKind(Enum):
    """A pass over chunks, in the order in which the kinds run.

    The null pass comes behind the text pass, so that what stays in the cache is what it wrote.
    """

    TEXT = "text"
    """the prompt, with history"""
    NULL = "null"
    """the null caption, with history"""
    UNCONDITIONAL = "unconditional"
    """the null caption, every chunk alone"""
    ALONE = "alone"
    """the prompt, every chunk alone"""

    @property
    def prompted(self) -> bool:
        """Whether chunks read their prompts."""
        return self in (PassKind.TEXT, PassKind.ALONE)

    @property
    def has_history(self) -> bool:
        """Whether chunks see the chunks before them, and the cache."""
        return self in (PassKind.TEXT, PassKind.NULL)


class Weights(NamedTuple):
    """Weight of each kind of pass in the velocity of one chunk."""

    text: float = 0.0
    null: float = 0.0
    unconditional: float = 0.0
    alone: float = 0.0

    def of(self, kind: PassKind) -> float:
        """The weight of one kind."""
        weight: float = getattr(self, kind.value)
        return weight


class Guidance(Protocol):
    """A rule that weighs the passes of a chunk."""

    @property
    def writer(self) -> PassKind:
        """The pass whose keys and values stay in the cache."""

    @property
    def always(self) -> tuple[PassKind, ...]:
        """The passes that run over all chunks when none is left out."""

    def weights(self, t: float, cleanest: bool) -> Weights:
        """Weights of a chunk at timestep t; ``cleanest`` is True for the first of its window."""


@lru_cache(maxsize=256)
def _band(bounds: tuple[float, ...], t: float) -> int:
    """Number of the band of t."""
    # in float32, as published: the stage borders of the time grid fall on the bounds
    edges = torch.tensor(bounds, dtype=torch.float32) - 1e-7
    return int((edges < torch.tensor(t, dtype=torch.float32)).sum()) - 1


@dataclass(frozen=True, kw_only=True)
class ThreePassGuidance:
    """Guidance of base models on previous chunks and prompt, by bands of t.

    With a and b the two scales of the band, the velocity is
    ``(1 - a) * unconditional + (a - b) * null + b * text``.
    """

    bounds: tuple[float, ...]
    """timesteps at which the bands begin, ascending from 0"""
    previous_scales: tuple[float, ...]
    text_scales: tuple[float, ...]

    writer: ClassVar[PassKind] = PassKind.NULL
    always: ClassVar[tuple[PassKind, ...]] = (
        PassKind.TEXT, PassKind.NULL, PassKind.UNCONDITIONAL,
    )  # fmt: skip

    def weights(self, t: float, cleanest: bool) -> Weights:
        """See :class:`Guidance`; a t on a bound belongs to the band that begins there."""
        band = _band(self.bounds, t)
        previous, text = self.previous_scales[band], self.text_scales[band]
        return Weights(text=text, null=previous - text, unconditional=1 - previous)


@dataclass(frozen=True, kw_only=True)
class SinglePassGuidance:
    """One pass, as distilled models take it.

    A nearly clean chunk at the head of its window is blended with itself seen without history.
    """

    threshold: float = 0.3
    """timestep above which a chunk is nearly clean"""
    previous_share: float = PREVIOUS_SHARE

    writer: ClassVar[PassKind] = PassKind.TEXT
    always: ClassVar[tuple[PassKind, ...]] = (PassKind.TEXT,)

    def weights(self, t: float, cleanest: bool) -> Weights:
        """See :class:`Guidance`."""
        if cleanest and schedule.is_near_clean(t, self.threshold):
            return Weights(text=self.previous_share, alone=1 - self.previous_share)
        return Weights(text=1.0)


@dataclass(frozen=True, kw_only=True)
class PromptGuidance:
    """Classifier-free guidance on the prompt alone, for worlds other than MAGI-1's."""

    scale: float = 1.0

    writer: ClassVar[PassKind] = PassKind.TEXT

    @property
    def always(self) -> tuple[PassKind, ...]:
        """See :class:`Guidance`."""
        return (PassKind.TEXT,) if self.scale == 1 else (PassKind.TEXT, PassKind.NULL)

    def weights(self, t: float, cleanest: bool) -> Weights:
        """See :class:`Guidance`."""
        return Weights(text=self.scale, null=1 - self.scale)


class Pass(NamedTuple):
    """One pass of a call."""

    kind: PassKind
    rows: tuple[int, ...]
    """chunks of the call that run in it, ascending"""
    weights: tuple[float, ...]
    """weight of each of them, 0 for a chunk that only others need"""


class Sight(Protocol):
    """What the choice of passes must know about a chunk of a call."""

    @property
    def slot(self) -> int: ...
    @property
    def ahead(self) -> int:
        """chunks between the history of its slot and this one"""

    @property
    def width(self) -> int | None:
        """KV range, None: everything"""

    @property
    def clean(self) -> bool:
        """finished, run only to be written to the cache"""

    @property
    def cleanest(self) -> bool:
        """the first chunk of its window that is being denoised"""


def plan_passes(
    chunks: Sequence[Sight], t: Sequence[float], guidance: Guidance, *, skip: bool = True
) -> list[Pass]:
    """Choose the passes of a call.

    Args:
        chunks: the chunks of the call.
        t: their timesteps.
        guidance: the rule.
        skip: leave out what has no weight and is needed by no other chunk; False runs every pass
            that the rule knows over all chunks, as the published code does.

    Returns:
        The passes in the order of their kinds.
    """
    weights = [
        Weights() if chunk.clean else guidance.weights(time, chunk.cleanest)
        for chunk, time in zip(chunks, t, strict=True)
    ]
    everything = all(chunk.clean for chunk in chunks)  # nothing is guided, so one pass is enough
    passes = []
    for kind in PassKind:
        rows = {row for row, weight in enumerate(weights) if weight.of(kind)}
        if kind is guidance.writer:
            rows |= {row for row, chunk in enumerate(chunks) if chunk.clean}
        if kind.has_history:
            rows = _with_context(rows, chunks)
        if not skip and kind in guidance.always and not everything:
            rows = {row for row, chunk in enumerate(chunks) if kind.has_history or not chunk.clean}
        if rows:
            chosen = tuple(sorted(rows))
            passes.append(Pass(kind, chosen, tuple(weights[row].of(kind) for row in chosen)))
    return passes


def _with_context(rows: Iterable[int], chunks: Sequence[Sight]) -> set[int]:
    """Add the chunks of the call that these read, directly or through another chunk.

    A chunk's keys of the second layer depend on all that it saw in the first, hence "through".
    """
    found, waiting = set(rows), list(rows)
    if not any(chunk.ahead for chunk in chunks):
        return found  # one chunk a slot
    while waiting:
        reader = chunks[waiting.pop()]
        for row, chunk in enumerate(chunks):
            distance = reader.ahead - chunk.ahead
            seen = reader.width is None or distance < reader.width
            if row not in found and chunk.slot == reader.slot and distance > 0 and seen:
                found.add(row)
                waiting.append(row)
    return found
