"""Driving a world's rollouts from real prefixes, in batches of one fixed width."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from magi_world.evaluation.clips import Clips, Integers
from magi_world.evaluation.metrics import Frames, blocks
from magi_world.evaluation.motion import CONTEXT
from magi_world.players import chunk_prompts
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.rollout import Rollout
from magi_world.sampling.sampler import Places
from magi_world.world import World

Phrases = Mapping[tuple[int, int], str | None]
"""the text to say in place of a card's prompt, by (clip, chunk); None, for all, says nothing"""


@dataclass(frozen=True, kw_only=True)
class DreamSettings:
    """How every measure of one report dreams; None takes the world's own default."""

    batch_size: int = 32
    steps: int | None = None
    temperature: float = 1.0
    seed: int = 0


def new_rollout(world: World, settings: DreamSettings, seeds: Sequence[int]) -> Rollout:
    """A rollout of `len(seeds)` slots with the report's settings."""
    return world.rollout(
        batch_size=len(seeds),
        seeds=list(seeds),
        steps=settings.steps,
        temperature=settings.temperature,
    )


def encode_chunks(world: World, chunks: Frames, *, block: int = 64) -> Tensor:
    """Latents float32 `[n, 16, P, h, w]` of uint8 chunks `[n, F, H, W, 3]`, each coded alone."""
    return torch.cat([world.encode(chunks[rows]) for rows in blocks(len(chunks), block)])


def decode_chunks(world: World, latents: Tensor, *, block: int = 64) -> Frames:
    """Frames uint8 `[n, F, H, W, 3]` of latents `[n, 16, P, h, w]`, each decoded alone."""
    parts = [world.decode(latents[rows]).cpu().numpy() for rows in blocks(len(latents), block)]
    return np.concatenate(parts)


def through_vae(world: World, frames: Frames) -> Frames:
    """Chunks as the world's VAE shows them: uint8 `[..., F, H, W, 3]`, the same shape out."""
    chunks = frames.reshape(-1, *frames.shape[-4:])
    return decode_chunks(world, encode_chunks(world, chunks)).reshape(frames.shape)


def start(rollout: Rollout, frames: Frames, prompts: Sequence[str]) -> None:
    """Reset every slot to its own real chunk, uint8 `[B, F, H, W, 3]`, with the prompt it had."""
    for slot, prompt in enumerate(prompts):
        rollout.reset(slots=[slot], video=torch.from_numpy(frames[slot]), prompts=[prompt])


def give_prefix(world: World, rollout: Rollout, frames: Frames, actions: Integers) -> None:
    """Reset all slots to their real chunks, uint8 `[B, n, F, H, W, 3]`, played as `actions` say."""
    names = prompts_of(world)
    width, length = actions.shape
    start(rollout, frames[:, 0], [names[action] for action in actions[:, 0]])
    if length > 1:
        given = encode_chunks(world, frames[:, 1:].reshape(-1, *frames.shape[2:]))
        given = given.unflatten(0, (width, length - 1))
        for index in range(length - 1):
            rollout.observe(given[:, index], [names[action] for action in actions[:, index + 1]])


def step_unprompted(rollout: Rollout) -> Chunk:
    """Generate the next chunk of every slot under the null caption, which `step` does not take.

    Noise comes from the slots' generators as in a step; nothing is drawn for the termination.
    """
    shape, nobody = rollout.world.config.latent_shape, [None] * rollout.batch_size
    with torch.inference_mode():
        drawn = [torch.randn(shape, generator=generator) for generator in rollout.generators]
        noise = torch.stack(drawn).to(rollout.device) * rollout.temperature
        places = Places(rollout.cache, range(rollout.batch_size), list(rollout.time))
        latents = rollout.sampler.denoise(noise, nobody, places)
    return rollout.observe(latents, nobody)


def prompts_of(world: World) -> list[str]:
    """The prompts of chunks, one an action of the data; index 0 is the no-op (of all players)."""
    return chunk_prompts(world.card)


def batches(clips: Clips, settings: DreamSettings) -> Iterator[tuple[slice, Clips, list[int]]]:
    """Cut clips into batches of one width, with a seed for every slot.

    A short last batch is filled up with its own clips again, so that every forward has the same
    width; the rows to keep are those of the slice.
    """
    width = min(settings.batch_size, len(clips))
    for rows in blocks(len(clips), width):
        taken = np.arange(rows.start, rows.start + width) % len(clips)
        batch = clips[taken]
        yield rows, batch, [settings.seed + rows.start + slot for slot in range(width)]


def dream(
    world: World,
    clips: Clips,
    actions: Integers,
    settings: DreamSettings,
    *,
    phrases: Phrases | None = None,
) -> Frames:
    """Give every clip's prefix, then dream under `actions`, int64 `[n, horizon]`.

    `phrases[clip, chunk]` are the words that are said, the card's prompts when None. Returns the
    last CONTEXT prefix chunks as the world sees them (coded and decoded), then the dreamed ones:
    uint8 `[n, CONTEXT + horizon, F, H, W, 3]`.
    """
    names = prompts_of(world)
    horizon = actions.shape[1]
    chunk_shape = clips.frames.shape[2:]
    result = np.empty((len(clips), CONTEXT + horizon, *chunk_shape), np.uint8)
    for rows, batch, seeds in batches(clips, settings):
        kept = rows.stop - rows.start
        rollout = new_rollout(world, settings, seeds)
        prefix = clips.prefix
        give_prefix(world, rollout, batch.frames[:, :prefix], batch.actions[:, :prefix])
        last = batch.frames[:kept, prefix - CONTEXT : prefix]
        result[rows, :CONTEXT] = through_vae(world, last)
        for chunk in range(horizon):
            taken = [clip % len(clips) for clip in range(rows.start, rows.start + len(seeds))]
            if phrases is None:
                stepped = rollout.step([names[action] for action in actions[taken, chunk]])
            else:
                said = [phrases[clip, chunk] for clip in taken]
                texts = [text for text in said if text is not None]
                stepped = rollout.step(texts) if texts else step_unprompted(rollout)
            result[rows, CONTEXT + chunk] = stepped.frames[:kept].cpu().numpy()
    return result
