"""A guided velocity: the passes of the DiT over chunks, each with its caption and its history.

Rollouts and the sampler of whole videos share this: a rollout brings one chunk of each of its
slots, a video the chunks of its window.

Shape suffixes: G chunks, C channels, P latent frames, H rows, W columns, n tokens per chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from magi_world.errors import ConfigError
from magi_world.kernels.attention import AttnSlices
from magi_world.models.dit import CaptionKV, ChunkInputs, DiTOutput, VideoDiT
from magi_world.planning.flops import forward_flops
from magi_world.sampling.captions import Caption, pack
from magi_world.sampling.guidance import Guidance, PassKind, plan_passes
from magi_world.sampling.kv_cache import KVCache
from magi_world.sampling.model_passes import ModelPasses

_PREPARED = 16  # inputs kept that do not change from step to step


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkView:
    """One chunk of a call: where it stands, what it sees and what it reads."""

    time: int
    """chunks before it since the history of its slot began"""
    caption: Caption
    """what it reads where prompts count"""
    null: Caption
    """what it reads where they do not"""
    slot: int = 0
    ahead: int = 0
    """chunks between the slot's cached history and this one"""
    width: int | None = None
    """KV range, itself included; None: everything that is held"""
    dropped: bool = False
    """there is no prompt: the condition vector is that of a dropped caption"""
    clean: bool = False
    """finished: it runs only to be written to the cache"""
    cleanest: bool = False
    """the first chunk of its window that is being denoised"""

    def read(self, kind: PassKind) -> Caption:
        """The caption that the chunk reads in a pass."""
        return self.caption if kind.prompted else self.null


class _Prepared(NamedTuple):
    """What a forward needs beside latents and times; the same for all steps of a stage."""

    rotary: tuple[Tensor, Tensor]
    caption: CaptionKV
    cross: AttnSlices
    dropped: Tensor


class GuidedModel:
    """Runs a DiT under guidance."""

    def __init__(
        self,
        dit: VideoDiT,
        guidance: Guidance,
        *,
        size: tuple[int, int, int],
        passes: ModelPasses | None = None,
        skip: bool = True,
        keep_captions: bool = True,
    ) -> None:
        """Set the model up.

        Args:
            dit: the model.
            guidance: weighs the passes.
            size: latent frames, rows and columns of a chunk.
            passes: counts what runs; None counts nothing.
            skip: leave out passes that cannot change anything.
            keep_captions: False computes keys and values of captions anew in every pass.
        """
        self.dit, self.guidance, self.size, self.skip = dit, guidance, size, skip
        self.keep_captions = keep_captions
        self.passes = passes
        patch = dit.config.patch_size
        self.tokens_per_chunk = size[0] * (size[1] // patch) * (size[2] // patch)
        self._prepared: dict[tuple[PassKind, tuple[ChunkView, ...]], _Prepared] = {}

    def velocity(
        self,
        x_GCPHW: Tensor,
        chunks: tuple[ChunkView, ...],
        t: Sequence[float],
        cache: KVCache,
        dt: float | None = None,
    ) -> Tensor:
        """The guided velocity of every chunk.

        Of finished chunks, which nothing guides, it is what the pass returned that writes them to
        the cache. The history's places are not written; those ahead of it are.

        Args:
            x_GCPHW: latents float32.
            chunks: G chunks; those of one slot are consecutive.
            t: timestep of each.
            cache: history, read and written.
            dt: step-size feature of distilled models.

        Returns:
            `[G, C, P, H, W]` float32.
        """
        total: Tensor | None = None
        for kind, rows, weights in plan_passes(chunks, t, self.guidance, skip=self.skip):
            factors = [
                1.0 if chunks[row].clean and kind is self.guidance.writer else weight
                for row, weight in zip(rows, weights, strict=True)
            ]
            whole = len(rows) == len(chunks)
            x = x_GCPHW if whole else x_GCPHW[list(rows)]
            output = self.forward(
                kind, x, tuple(chunks[row] for row in rows), [t[row] for row in rows], cache, dt
            ).velocity
            if whole and all(factor == 1 for factor in factors) and total is None:
                total = output
                continue
            if total is None:
                total = torch.zeros_like(x_GCPHW)
            scales = torch.tensor(factors, dtype=output.dtype, device=output.device)[
                :, None, None, None, None
            ]
            scaled = output * scales
            if whole:
                total = total + scaled
            else:
                total = total.index_add(0, torch.tensor(rows, device=total.device), scaled)
        self._count_published(chunks, t)
        return torch.zeros_like(x_GCPHW) if total is None else total

    def clean_pass(
        self,
        x_GCPHW: Tensor,
        chunks: tuple[ChunkView, ...],
        t: float,
        cache: KVCache,
        dt: float | None = None,
    ) -> DiTOutput:
        """Write finished chunks ahead of the history; the caller advances the cache."""
        self._count_published(chunks, [t] * len(chunks))
        return self.forward(self.guidance.writer, x_GCPHW, chunks, [t] * len(chunks), cache, dt)

    def forward(
        self,
        kind: PassKind,
        x_GCPHW: Tensor,
        chunks: tuple[ChunkView, ...],
        t: Sequence[float],
        cache: KVCache,
        dt: float | None,
    ) -> DiTOutput:
        """One pass over chunks."""
        prepared = self._prepare(kind, chunks)
        device = x_GCPHW.device
        times = torch.tensor(t, dtype=torch.float32, device=device)
        n = self.tokens_per_chunk
        if kind.has_history:
            attend = cache.open([(chunk.slot, chunk.ahead, chunk.width) for chunk in chunks])
        else:
            attend = AttnSlices.repeated(len(chunks), n, n)
        inputs = ChunkInputs(
            x=x_GCPHW,
            t=times,
            dropped=prepared.dropped,
            rotary=prepared.rotary,
            caption=prepared.caption,
            attend=attend,
            cross=prepared.cross,
            dt=None if dt is None else torch.full_like(times, dt),
            previous=self._previous(kind, x_GCPHW, chunks, cache),
        )
        output: DiTOutput = self.dit(inputs, cache if kind.has_history else None)
        if self.dit.config.previous_chunk and kind is self.guidance.writer:
            rows = [row for row, chunk in enumerate(chunks) if chunk.clean]
            if rows:
                cache.finish([chunks[row].slot for row in rows], x_GCPHW[rows])
        self._count(kind, chunks, cache, distilled=dt is not None)
        return output

    def _previous(
        self, kind: PassKind, x_GCPHW: Tensor, chunks: tuple[ChunkView, ...], cache: KVCache
    ) -> Tensor | None:
        """The chunk before each, for models that read it."""
        if not self.dit.config.previous_chunk:
            return None
        if any(chunk.ahead for chunk in chunks):
            raise ConfigError("a model with previous_chunk denoises one chunk of a slot at a time")
        if not kind.has_history:
            return torch.zeros_like(x_GCPHW)
        return cache.newest[[chunk.slot for chunk in chunks]]

    def forget(self) -> None:
        """Drop what was prepared for chunks that are gone."""
        self._prepared.clear()

    def _prepare(self, kind: PassKind, chunks: tuple[ChunkView, ...]) -> _Prepared:
        key = (kind, chunks)
        found = self._prepared.get(key) if self.keep_captions else None
        if found is None:
            found = self._made(kind, chunks)
            while len(self._prepared) >= _PREPARED:
                self._prepared.pop(next(iter(self._prepared)))
            self._prepared[key] = found
        return found

    def _made(self, kind: PassKind, chunks: tuple[ChunkView, ...]) -> _Prepared:
        captions = [chunk.read(kind) for chunk in chunks]
        device = captions[0].kv[0][0].device
        if not self.keep_captions:
            fresh = {c: Caption(c.kv if c.again is None else c.again()) for c in set(captions)}
            if self.passes is not None:
                for caption in fresh:
                    self.passes.add_caption(self.dit.config, caption.length)
            captions = [fresh[caption] for caption in captions]
        packed = pack(captions, self.tokens_per_chunk)
        dropped = [chunk.dropped or not kind.prompted for chunk in chunks]
        # a chunk alone has no place in time: all of them start at 0
        first = [chunk.time * self.size[0] if kind.has_history else 0 for chunk in chunks]
        rotary = self.dit.rotary(torch.tensor(first, device=device), self.size)
        return _Prepared(rotary, packed.kv, packed.cross, torch.tensor(dropped, device=device))

    def _count(
        self, kind: PassKind, chunks: tuple[ChunkView, ...], cache: KVCache, *, distilled: bool
    ) -> None:
        if self.passes is None:
            return
        n = self.tokens_per_chunk
        for chunk in chunks:
            if chunk.clean:
                self.passes.clean += 1
            else:
                self.passes.denoising[kind.value] += 1
            seen = cache.seen(chunk.slot, chunk.ahead, chunk.width) if kind.has_history else 1
            forward = forward_flops(
                self.dit.config, tokens=n, keys=seen * n, distilled=distilled,
                caption_tokens=chunk.read(kind).length,
            )  # fmt: skip
            self.passes.add(forward)

    def _count_published(self, chunks: Sequence[ChunkView], t: Sequence[float]) -> None:
        """Count what the published code runs: every pass, over every chunk that it could take."""
        if self.passes is None:
            return
        always = self.guidance.always
        for chunk, time in zip(chunks, t, strict=True):
            if chunk.clean:
                self.passes.published_clean += sum(kind.has_history for kind in always)
            else:
                alone = self.guidance.weights(time, chunk.cleanest).alone != 0
                self.passes.published_denoising += len(always) + alone
