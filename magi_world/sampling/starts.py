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
