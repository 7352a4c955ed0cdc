"""The sampler of whole videos: a window of chunks at staggered timesteps over a fixed cache.

The control flow is planned by :mod:`magi_world.sampling.pipeline`; here its calls are run. What is
held at any time are the chunks of the window, the one that just left it, and the cache, so that
memory does not grow with the video.

Shape suffixes: G chunks of a call, C channels, P latent frames, H rows, W columns.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from magi_world.errors import ConfigError
from magi_world.models.dit import VideoDiT
from magi_world.sampling.captions import Caption
from magi_world.sampling.guided import ChunkView, GuidedModel
from magi_world.sampling.kv_cache import KVCache
from magi_world.sampling.model_passes import ModelPasses
from magi_world.sampling.pipeline import DenoiseStep, Emission, ModelCall, SamplingPlan
from magi_world.sampling.settings import SamplerConfig


class ChunkSource(Protocol):
    """Where the sampler gets a chunk's conditions from; chunks are asked for in order."""

    def exists(self, chunk: int) -> bool:
        """Whether the video has a chunk of this number; only asked when nobody knows its end."""

    def noise(self, chunk: int) -> Tensor:
        """Initial noise `[C, P, H, W]`."""

    def caption(self, chunk: int) -> Caption:
        """What the chunk reads."""

    def kv_ranges(self, chunk: int) -> tuple[int, ...]:
        """Its KV ranges, one a noise stage."""


class WindowSampler:
    """Generates the chunks of one video.

    Attributes:
        plan: the control flow.
        cache: keys and values, one slot.
        model: the guided model, with the counters.
        x: latents `[C, P, H, W]` of the chunks that are not yet in the cache in their clean form.
    """

    def __init__(
        self,
        dit: VideoDiT,
        config: SamplerConfig,
        *,
        size: tuple[int, int, int, int],
        null: Caption,
        num_chunks: int | None,
        prefix_latent_frames: int = 0,
        emit_prefix: bool | None = None,
        passes: ModelPasses | None = None,
    ) -> None:
        """Plan the video and allocate its cache.

        Args:
            dit: the model.
            config: how it is sampled.
            size: channels, latent frames, rows and columns of a chunk.
            null: the null caption.
            num_chunks: chunks, prefix included; None: the source knows the end when it comes.
            prefix_latent_frames: given latent frames.
            emit_prefix: whether prefix frames leave with the chunk that they begin; None: those of
                an image do.
            passes: counts what runs.

        Raises:
            ConfigError: values that cannot finish a chunk, or an endless video whose chunks see
                all of it.
        """
        self.config, self.size = config, size
        self.compat = config.compat is not None
        self.plan = SamplingPlan(
            num_chunks=num_chunks,
            num_steps=config.num_steps,
            window=config.window,
            chunk_width=size[1],
            prefix_latent_frames=prefix_latent_frames,
            kv_ranges=config.kv_ranges,
            clean_kv_range=config.clean_kv_range,
            clean_t=config.clean_t,
            near_clean_threshold=config.near_clean_threshold,
            own_clean_pass=not self.compat,
            emit_prefix=emit_prefix,
            shift=config.shift,
            transform=config.transform,
            shortcut_mode=config.shortcut_mode,
        )
        self.model = GuidedModel(
            dit, config.guidance, size=size[1:], passes=passes,
            skip=config.savings.skip_passes, keep_captions=config.savings.caption_kv,
        )  # fmt: skip
        self.null, self.device = null, null.kv[0][0].device
        places, history = self._places(num_chunks)
        self.cache = KVCache(
            slots=1,
            places=places,
            history=history,
            tokens=self.model.tokens_per_chunk,
            layers=dit.config.num_layers,
            groups=dit.config.num_query_groups,
            head_dim=dit.config.kv_channels,
            dtype=dit.block_dtype,
            device=self.device,
            window=config.window,
            whole_rings=False,
            on_host=config.kv_on_host,
            latent_shape=size if dit.config.previous_chunk else (0,),
        )
        self.x: dict[int, Tensor] = {}
        self._captions: dict[int, Caption] = {}

    def _places(self, num_chunks: int | None) -> tuple[int, int]:
        """Chunks that the cache holds, and the most of them that are history."""
        config = self.config
        limit = config.max_kv_range
        if limit is None or not config.savings.fixed_cache:
            if num_chunks is None:
                raise ConfigError(
                    "a video without end cannot be seen whole: give KV ranges, or num_frames"
                )
            return num_chunks, num_chunks - 1
        # as published, a finished chunk is fed in front of a whole window: if it sees as far back
        # as any chunk, one place more is held
        clean = config.kv_ranges[-1] if config.clean_kv_range == -1 else config.clean_kv_range
        history = limit - 1 + (self.compat and clean == limit)
        places = history + config.window
        # in a short video every chunk has a place of its own
        return places if num_chunks is None else min(places, num_chunks), history

    # ---------------------------------------------------------------- the video

    def run(
        self, source: ChunkSource, prefix: Tensor | None = None
    ) -> Iterator[tuple[Emission, Tensor]]:
        """Generate the chunks one after the other.

        Args:
            source: conditions of the chunks.
            prefix: given latents `[C, T, H, W]`.

        Yields:
            What leaves, and its latents `[C, P', H, W]` float32, as soon as a chunk is clean.
        """
        pinned = None if prefix is None else prefix.to(self.device, torch.float32)
        self._cache_prefix(pinned)
        steps = self.plan.steps(exists=source.exists, kv_ranges_of=source.kv_ranges)
        for step in steps:  # asks the source for new chunks, whose code is the caller's own
            with torch.inference_mode():
                self.denoise(step, source, pinned)
                left = None if step.emitted is None else self.x[step.emitted.chunk]
            if step.emitted is not None and left is not None:
                start = step.emitted.chunk * self.size[1]
                frames = slice(step.emitted.first - start, step.emitted.stop - start)
                yield step.emitted, left[:, frames].clone()

    @torch.inference_mode()
    def _cache_prefix(self, pinned: Tensor | None) -> None:
        call = self.plan.prefix_call()
        if call is None or pinned is None:
            return
        x = pinned[:, : call.stop * self.size[1]].unflatten(1, (call.stop, -1)).transpose(0, 1)
        self.velocity(call, x)

    def denoise(self, step: DenoiseStep, source: ChunkSource, pinned: Tensor | None) -> None:
        """One denoising step of the window, with what comes before it."""
        for chunk in range(step.stage.first, step.stage.stop):
            if chunk not in self.x:
                self._captions[chunk] = source.caption(chunk)
                self.x[chunk] = source.noise(chunk).to(self.device, torch.float32)
        if step.step_in_stage == 0:
            self.model.forget()
        if step.clean_call is not None:
            self.velocity(step.clean_call, self._input(step.clean_call, pinned))
            self._leave(step.clean_call.first)
        call = step.call
        x = self._input(call, pinned)
        velocity = self.velocity(call, x)
        first = int(call.extra_clean_chunk)
        if first:
            self._leave(call.first)
        for index, delta in enumerate(step.delta_t):
            row = first + index
            self.x[step.stage.first + index] = x[row] + delta * velocity[row]
        if step.emitted is not None and not self.compat:
            chunk = step.emitted.chunk
            self.x[chunk] = self._pin(chunk, self.x[chunk], pinned)

    def _input(self, call: ModelCall, pinned: Tensor | None) -> Tensor:
        """Latents of a call's chunks, the prefix's frames in their places."""
        return torch.stack(
            [self._pin(chunk, self.x[chunk], pinned) for chunk in range(call.first, call.stop)]
        )

    def _pin(self, chunk: int, x_CPHW: Tensor, pinned: Tensor | None) -> Tensor:
        start = chunk * self.size[1]
        given = 0 if pinned is None else min(pinned.shape[1] - start, self.size[1])
        if pinned is None or given <= 0:
            return x_CPHW
        return torch.cat([pinned[:, start : start + given], x_CPHW[:, given:]], dim=1)

    def _leave(self, chunk: int) -> None:
        """A chunk is in the cache in its clean form: nothing else of it is needed."""
        self.cache.advance([0])
        del self.x[chunk], self._captions[chunk]

    # ---------------------------------------------------------------- one call

    def velocity(self, call: ModelCall, x_GCPHW: Tensor) -> Tensor:
        """Run one call of the plan; the chunks before ``call.first`` are in the cache.

        Returns:
            The guided velocity `[G, C, P, H, W]`; for clean chunks what the pass returned that
            writes them to the cache.
        """
        dt = self.config.step_feature(call.interval)
        if call.extract_prefix:
            return self._prefix_velocity(call, x_GCPHW, dt)
        views = tuple(self._view(call, index, call.first) for index in range(call.num_chunks))
        return self.model.velocity(x_GCPHW, views, call.t, self.cache, dt)

    def _prefix_velocity(self, call: ModelCall, x_GCPHW: Tensor, dt: float | None) -> Tensor:
        """Write whole prefix chunks to the cache, as many at a time as the ring has room for."""
        guidance, passes = self.config.guidance, self.model.passes
        if passes is not None:  # the published code runs every pass over them
            passes.published_clean += call.num_chunks * len(guidance.always)
        begin = self._first_seen(call)
        parts = [torch.zeros_like(x_GCPHW[:begin])]
        for first in range(begin, call.stop, self.config.window):
            stop = min(first + self.config.window, call.stop)
            views = tuple(self._view(call, index, cached=first) for index in range(first, stop))
            output = self.model.forward(
                guidance.writer, x_GCPHW[first:stop], views, call.t[first:stop], self.cache, dt
            )
            parts.append(output.velocity)
            for _ in views:
                self.cache.advance([0])
        return torch.cat(parts)

    def _first_seen(self, call: ModelCall) -> int:
        """The first prefix chunk that a generated chunk can see."""
        if self.model.dit.config.previous_chunk:  # each reads the latents of the one before it too
            return 0
        alone = all(stop - first == 1 for first, stop in call.kv_chunks)
        if not (self.config.savings.unseen_prefix and alone):
            return 0
        return max(0, call.stop - self.cache.history)

    def _view(self, call: ModelCall, index: int, cached: int) -> ChunkView:
        """The index-th chunk of a call, with ``cached`` chunks before the forward's first."""
        chunk = call.first + index
        first, stop = call.kv_chunks[index]
        clean = not call.prompted[index]
        caption = self._captions.get(chunk)
        if caption is None or (clean and self.config.clean_null_caption):
            caption = self.null
        return ChunkView(
            time=chunk,
            ahead=chunk - cached,
            width=stop - first,
            caption=caption,
            null=self.null,
            dropped=caption is self.null and self.config.clean_dropped,
            clean=clean,
            cleanest=not clean and index == int(call.extra_clean_chunk),
        )
