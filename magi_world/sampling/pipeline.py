"""The control flow of generating a video, without the network: a plan of model calls.

A window of chunks moves over the video (:func:`magi_world.sampling.schedule.stages`). Each step is
one call of the DiT over the window, at the head of which a chunk that has just been finished may be
fed once more, clean, so that its keys and values enter the cache. The source is golden README
section 6; the names in brackets are the published ones.

All counts are in chunks or latent frames, so a plan does not depend on the picture's size. A call's
input is always the contiguous chunks `first <= chunk < stop`, and the cache holds the `first`
chunks before it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch

from magi_world.errors import ConfigError
from magi_world.sampling import schedule
from magi_world.sampling.schedule import Stage

_RangesOf = Callable[[int], tuple[int, ...]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCall:
    """What one call of the DiT is given."""

    first: int
    """first chunk of the input = chunks in the cache before it (``slice_point``)"""
    stop: int
    """one past the last chunk of the input (``range_num``)"""
    t: tuple[float, ...]
    """timestep of each input chunk, exact float32 values"""
    kv_chunks: tuple[tuple[int, int], ...]
    """for each input chunk the chunks [first, stop) that it sees, counted from the video's start"""
    prefix_latent_frames: int
    """leading latent frames of the input that are overwritten by those of the prefix"""
    interval: float
    """step interval that a distilled model is told (``distill_interval``)"""
    extract_prefix: bool = False
    """this call only fills the cache with whole prefix chunks (``extract_prefix``)"""
    extra_clean_chunk: bool = False
    """the first input chunk is finished and fed only to be cached (``fwd_extra_1st_chunk``)"""
    near_clean: bool = False
    """the first chunk being denoised is nearly clean (``near_clean``)"""

    @property
    def num_chunks(self) -> int:
        """Chunks of the input (``denoising_range_num``)."""
        return self.stop - self.first

    @property
    def prompted(self) -> tuple[bool, ...]:
        """For each input chunk, whether the prompted rows carry its prompt or the null caption."""
        clean = self.num_chunks if self.extract_prefix else int(self.extra_clean_chunk)
        return (False,) * clean + (True,) * (self.num_chunks - clean)

    def kv_range(self, tokens_per_chunk: int) -> list[tuple[int, int]]:
        """Return the KV ranges as token intervals in [cache rows | own rows]."""
        n = tokens_per_chunk
        return [(first * n, stop * n) for first, stop in self.kv_chunks]


@dataclass(frozen=True, kw_only=True, slots=True)
class Emission:
    """A finished chunk and the latent frames of it that leave the sampler."""

    chunk: int
    index: int
    """number of the chunk among the generated ones, from 0"""
    first: int
    """first latent frame that leaves, counted from the video's start"""
    stop: int
    """one past the last"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenoiseStep:
    """One denoising step: a model call over the window and the Euler update of its chunks."""

    index: int
    """number of the step in the whole plan"""
    stage_index: int
    """number of the stage in the whole plan"""
    step_in_stage: int
    stage: Stage
    """the window: `stage.first <= chunk < stage.stop`"""
    time_indices: tuple[int, ...]
    """steps that each chunk of the window has had before this one, oldest chunk first"""
    delta_t: tuple[float, ...]
    """Euler step of each chunk of the window, exact float32 values"""
    call: ModelCall
    emitted: Emission | None
    """the chunk that this step finishes"""
    clean_call: ModelCall | None = None
    """the clean pass before this step, of the chunk that left the window, where it has its own"""


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """Every model call and every update of generating one video.

    >>> plan = SamplingPlan(num_chunks=3, num_steps=8, window=4)
    >>> [step.emitted.index for step in plan.steps() if step.emitted]
    [0, 1, 2]

    Raises:
        ConfigError: values that cannot finish a chunk; the message says what is allowed.
    """

    num_chunks: int | None
    """chunks of the video, prefix included: :func:`magi_world.sampling.schedule.count_chunks`;
    None while nobody knows"""
    num_steps: int
    """denoising steps per chunk, a multiple of ``window`` and of the number of ``kv_ranges``"""
    window: int = 1
    """chunks denoised together"""
    chunk_width: int = 6
    """latent frames per chunk"""
    prefix_latent_frames: int = 0
    """given latent frames at the start: 1 for an image, more for a video"""
    kv_ranges: tuple[int, ...] = (5, 4, 3, 2)
    """KV range per noise stage, noisiest first; empty: everything (``noise2clean_kvrange``)"""
    clean_kv_range: int = 1
    """KV range of a clean chunk, -1: the last of ``kv_ranges`` (``clean_chunk_kvrange``)"""
    clean_t: float = 0.9999
    """timestep at which clean chunks are fed"""
    near_clean_threshold: float = 0.3
    """timestep above which a chunk is nearly clean (``distill_nearly_clean_chunk_threshold``)"""
    own_clean_pass: bool = False
    """a finished chunk is cached by a call of its own; as published it is fed at the head of the
    next denoising step"""
    emit_prefix: bool | None = None
    """whether prefix frames leave with the chunk that they begin; None: those of one frame do, as
    published"""
    shift: float = schedule.SHIFT
    transform: str = "square"
    shortcut_mode: str = "8,16,16"
    """these three: see :func:`magi_world.sampling.schedule.time_grid`"""

    def __post_init__(self) -> None:
        for name in ("num_chunks", "num_steps", "window", "chunk_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} {value} is below 1")
        schedule.check_window(self.num_steps, self.window)
        if not 0 < self.clean_t <= 1:
            raise ConfigError(f"clean_t {self.clean_t} is outside (0, 1]")
        frames = self.prefix_latent_frames
        room = frames + 1 if self.num_chunks is None else self.num_chunks * self.chunk_width
        if not 0 <= frames < room:
            raise ConfigError(
                f"prefix_latent_frames {self.prefix_latent_frames} is outside 0..{room - 1}: at "
                f"least one of {self.num_chunks} chunks of {self.chunk_width} must be generated"
            )
        schedule.check_kv_ranges(self.num_steps, self.kv_ranges)
        schedule.clean_kv_width(self.kv_ranges, self.clean_kv_range)
        _ = self.grid  # refuses the arguments of the grid here, not at the first step

    @cached_property
    def grid(self) -> list[float]:
        """The timesteps, see :func:`magi_world.sampling.schedule.time_grid`."""
        return schedule.time_grid(
            self.num_steps,
            shift=self.shift,
            transform=self.transform,
            shortcut_mode=self.shortcut_mode,
        )

    @property
    def offset(self) -> int:
        """Chunks that the prefix fills completely; they are cached, not generated."""
        return self.prefix_latent_frames // self.chunk_width

    @property
    def steps_per_stage(self) -> int:
        """Denoising steps of one stage."""
        return self.num_steps // self.window

    @property
    def total_steps(self) -> int | None:
        """Denoising steps of the whole plan, each one model call; None while nobody knows."""
        if self.num_chunks is None:
            return None
        return self.steps_per_stage * (self.num_chunks + self.window - 1 - self.offset)

    def prefix_call(self) -> ModelCall | None:
        """Return the call that caches the whole prefix chunks; None without any (section 6.5)."""
        if self.offset == 0:
            return None
        width = schedule.clean_kv_width(self.kv_ranges, self.clean_kv_range, prefix=True)
        return ModelCall(
            first=0,
            stop=self.offset,
            t=(_float32(self.clean_t),) * self.offset,
            kv_chunks=tuple(schedule.kv_chunks(c, width) for c in range(self.offset)),
            prefix_latent_frames=self.offset * self.chunk_width,
            interval=self._intervals[0],
            extract_prefix=True,
        )

    def steps(
        self,
        *,
        exists: Callable[[int], bool] | None = None,
        kv_ranges_of: Callable[[int], tuple[int, ...]] | None = None,
    ) -> Iterator[DenoiseStep]:
        """Yield the denoising steps in order; :meth:`prefix_call` comes before them.

        Args:
            exists: asked for every new chunk when the number of chunks is not known; see
                :func:`magi_world.sampling.schedule.stages`.
            kv_ranges_of: KV ranges of single chunks, checked; None: ``kv_ranges`` for all.
        """
        ranges_of = (lambda chunk: self.kv_ranges) if kv_ranges_of is None else kv_ranges_of
        sizes = schedule.step_sizes(self.grid)
        windows = schedule.stages(self.num_chunks, self.window, offset=self.offset, exists=exists)
        for stage_index, stage in enumerate(windows):
            for step in range(self.steps_per_stage):
                indices = stage.time_indices(self.steps_per_stage, step)
                finished = indices[0] + 1 == self.num_steps
                yield DenoiseStep(
                    index=stage_index * self.steps_per_stage + step,
                    stage_index=stage_index,
                    step_in_stage=step,
                    stage=stage,
                    time_indices=indices,
                    delta_t=tuple(sizes[k] for k in indices),
                    clean_call=self._clean_call(stage, step, ranges_of),
                    call=self._call(stage, step, indices, ranges_of),
                    emitted=self._emission(stage.first) if finished else None,
                )

    def _clean_call(self, stage: Stage, step: int, ranges_of: _RangesOf) -> ModelCall | None:
        if not (self.own_clean_pass and step == 0 and stage.first > self.offset):
            return None
        chunk = stage.first - 1
        width = schedule.clean_kv_width(ranges_of(chunk), self.clean_kv_range)
        return ModelCall(
            first=chunk,
            stop=stage.first,
            t=(_float32(self.clean_t),),
            kv_chunks=(schedule.kv_chunks(chunk, width),),
            prefix_latent_frames=self._pinned(chunk),
            interval=self._intervals[0],
            extra_clean_chunk=True,
        )

    def _call(
        self, stage: Stage, step: int, indices: tuple[int, ...], ranges_of: _RangesOf
    ) -> ModelCall:
        t = tuple(self.grid[k] for k in indices)
        near_clean = schedule.is_near_clean(t[0], self.near_clean_threshold)
        widths = [
            schedule.kv_width(k, self.num_steps, ranges_of(stage.first + i))
            for i, k in enumerate(indices)
        ]
        first = stage.first
        # the chunk that left the window one stage ago is not in the cache in its clean form yet
        extra = step == 0 and first > self.offset and not self.own_clean_pass
        if extra:
            first -= 1
            t = (_float32(self.clean_t), *t)
            widths.insert(0, schedule.clean_kv_width(ranges_of(first), self.clean_kv_range))
        chunks = range(first, stage.stop)
        return ModelCall(
            first=first,
            stop=stage.stop,
            t=t,
            kv_chunks=tuple(schedule.kv_chunks(c, w) for c, w in zip(chunks, widths, strict=True)),
            prefix_latent_frames=self._pinned(first),
            interval=self._intervals[step],
            extra_clean_chunk=extra,
            near_clean=near_clean,
        )

    def _pinned(self, first: int) -> int:
        """Latent frames of the prefix from a chunk on."""
        return max(0, self.prefix_latent_frames - first * self.chunk_width)

    def _emission(self, chunk: int) -> Emission:
        first, stop = chunk * self.chunk_width, (chunk + 1) * self.chunk_width
        # a prefix leaves the output, except the single frame of an image (section 6.6)
        emits = self.emit_prefix
        if emits is None:
            emits = self.prefix_latent_frames == 1
        if not emits:
            first = max(first, self.prefix_latent_frames)
        return Emission(chunk=chunk, index=chunk - self.offset, first=first, stop=stop)

    @cached_property
    def _intervals(self) -> list[float]:
        return schedule.step_intervals(self.num_steps, self.shortcut_mode)


def _float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))
