"""What slots begin with: histories that have gone through their clean passes.

Shape suffixes: n clips side by side, m chunks of a clip, C channels, P latent frames, h and w the
latent grid.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from magi_world.sampling.chunk import Chunk
from magi_world.sampling.kv_cache import KVCache
from magi_world.sampling.sampler import ChunkSampler, Places


class Start(NamedTuple):
    """What a slot begins with."""

    cache: KVCache
    """one slot"""
    chunk: Chunk
    """the last chunk of the history, reward 0: what lies before the first step earns nothing"""
    length: int
    """chunks of the history"""


def replayed(sampler: ChunkSampler, latents: Tensor, prompts: Sequence[str | None]) -> Start:
    """Clean passes of the chunks of one history, latents `[m, C, P, h, w]` and m prompts."""
    cache = sampler.new_cache(1)
    return Start(cache, sampler.replay(latents, prompts, cache), len(prompts))


def generated(sampler: ChunkSampler, noise_1CPhw: Tensor, prompt: str) -> Start:
    """Chunk 0, generated from this noise under a prompt, with no history."""
    cache = sampler.new_cache(1)
    places = Places(cache, [0], [0])
    latents = sampler.denoise(noise_1CPhw, [prompt], places)
    chunk = sampler.clean_pass(latents, [prompt], places)
    cache.advance([0])
    return Start(cache, replace(chunk, reward=torch.zeros_like(chunk.reward)), 1)


class ClipStarts:
    """What the clips of a world's bank begin with.

    The same clip always gives the same keys and values, so each is replayed once and kept.
    """

    def __init__(self, sampler: ChunkSampler) -> None:
        self.sampler = sampler
        self.kept: dict[int, Start] = {}

    def start(self, clip: int) -> Start:
        """The start of a clip; it is shared and must not be changed."""
        if clip not in self.kept:
            self.kept[clip] = replayed(self.sampler, *self.sampler.world.bank.clip(clip))
        return self.kept[clip]

    @torch.inference_mode()
    def prepare(self, side_by_side: int = 64) -> None:
        """Replay all clips ahead, so many at once; agrees with one by one to rounding."""
        bank = self.sampler.world.bank
        by_length: dict[int, list[int]] = {}
        for clip, latents in enumerate(bank.latents):
            by_length.setdefault(len(latents), []).append(clip)
        for clips in by_length.values():
            for first in range(0, len(clips), side_by_side):
                part = clips[first : first + side_by_side]
                starts = replay_together(self.sampler, [bank.clip(clip) for clip in part])
                self.kept |= dict(zip(part, starts, strict=True))


def replay_together(
    sampler: ChunkSampler, clips: Sequence[tuple[Tensor, Sequence[str | None]]]
) -> list[Start]:
    """Clean passes of clips of equal length, side by side; one start a clip.

    Agrees with replaying them one by one to rounding, several times as fast.

    Args:
        sampler: of the rollout that will begin with them.
        clips: latents `[m, C, P, h, w]` and m prompts each.

    Raises:
        ValueError: clips of different lengths.
    """
    lengths = {len(latents) for latents, _ in clips}
    if len(lengths) != 1:
        raise ValueError(f"clips of {sorted(lengths)} chunks: one length is needed")
    (length,) = lengths
    slots = range(len(clips))
    cache = sampler.new_cache(len(clips))
    for index in range(length):
        x_nCPhw = torch.stack([latents[index] for latents, _ in clips])
        prompts = [prompts[index] for _, prompts in clips]
        places = Places(cache, slots, [index] * len(clips))
        chunk = sampler.clean_pass(x_nCPhw.to(sampler.world.device, torch.float32), prompts, places)
        cache.advance(slots)
    starts = []
    for slot in slots:
        own = sampler.new_cache(1)
        own.copy_slot(0, cache, slot)
        row = chunk.row(slot)
        starts.append(Start(own, replace(row, reward=torch.zeros_like(row.reward)), length))
    return starts
