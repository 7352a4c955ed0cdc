"""Sequences of real chunks as one forward: a clean copy and noisy copies of every chunk.

The clean copies play the history that a rollout would have in its cache; every noisy copy sees the
clean copies before it and itself. So all chunks of a sequence are supervised in one forward, under
a block mask given as slices (MAGI-1 paper, section on training; architecture: one attention).

Shape suffixes: S sequences, L chunks in a sequence, G = S * L chunks, R noisy copies of each,
n tokens per chunk. Packed order: all clean copies, then all first noisy copies, then all second
ones, and so on, each in the order (sequence, chunk).
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from magi_world.kernels.attention import AttnSlices, builders
from magi_world.models.dit import CaptionKV, ChunkInputs
from magi_world.sampling.schedule import time_grid
from magi_world.world import World


@lru_cache(maxsize=32)
def teacher_forcing_slices(
    sequences: int, length: int, kv_range: int, tokens: int, copies: int = 1
) -> AttnSlices:
    """Who sees whom among the clean and noisy copies.

    Args:
        sequences: S.
        length: L.
        kv_range: chunks, itself included, that a chunk may see.
        tokens: n.
        copies: R.
    """
    return builders.teacher_forcing(sequences, length, tokens, kv_range, copies=copies)


def draw_kv_range(most: int, generator: torch.Generator) -> int | None:
    """The KV range of a batch: one of 1, 2, 4, … up to ``most``; None, the world's own, for 0."""
    if not most:
        return None
    ranges = [1 << i for i in range(most.bit_length())]
    return ranges[int(torch.randint(len(ranges), (), generator=generator))]


def caption_slices(choice: Sequence[int], lengths: Sequence[int], tokens: int) -> AttnSlices:
    """Each chunk's queries over the rows of the caption that it chose.

    Args:
        choice: index of the caption of every chunk in the forward.
        lengths: tokens of every caption, packed in this order.
        tokens: n.
    """
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    return AttnSlices.from_list(
        (i * tokens, (i + 1) * tokens, ends[c], ends[c + 1], 0) for i, c in enumerate(choice)
    )


def concatenate_captions(parts: Sequence[CaptionKV]) -> CaptionKV:
    """Captions of several sources as one packed list per layer."""
    return [
        (torch.cat([part[i][0] for part in parts]), torch.cat([part[i][1] for part in parts]))
        for i in range(len(parts[0]))
    ]


def add_noise(x_GCPHW: Tensor, noise_GCPHW: Tensor, t_G: Tensor) -> Tensor:
    """Point of the straight path from noise (t = 0) to the clean latents (t = 1)."""
    t = t_G.view(-1, 1, 1, 1, 1)
    return (1 - t) * noise_GCPHW + t * x_GCPHW


def teacher_forced_inputs(
    world: World,
    shape: tuple[int, int],
    *,
    clean: tuple[Tensor, Tensor],
    noisy: tuple[Tensor, Tensor],
    captions: tuple[CaptionKV, Sequence[int]],
    choice_G: Tensor,
    dropped_G: Tensor,
    kv_range: int | None = None,
) -> ChunkInputs:
    """One forward over all copies of S sequences of L chunks.

    Args:
        world: whose DiT and geometry.
        shape: S and L.
        clean: the clean copies `[G, C, P, h, w]` and their times `[G]`.
        noisy: the noisy copies `[R * G, C, P, h, w]` and their times `[R * G]`.
        captions: packed captions and the tokens of each.
        choice_G: index of each chunk's caption.
        dropped_G: booleans, the chunk has no prompt.
        kv_range: chunks, itself included, that a chunk may see; the world's own by default.
    """
    S, L = shape
    config = world.config
    n, width = config.tokens_per_chunk, config.sampling.chunk_width
    x = torch.cat([clean[0], noisy[0]])
    copies = noisy[0].shape[0] // clean[0].shape[0]
    first = (torch.arange(L) * width).repeat((1 + copies) * S)
    previous = None
    if world.dit.config.previous_chunk:
        before_SLCPHW = clean[0].unflatten(0, (S, L)).roll(1, dims=1)
        before_SLCPHW[:, 0] = 0  # as in a rollout that has no history
        previous = before_SLCPHW.flatten(0, 1).repeat(1 + copies, 1, 1, 1, 1)
    return ChunkInputs(
        x=x,
        t=torch.cat([clean[1], noisy[1]]),
        dropped=dropped_G.repeat(1 + copies),
        rotary=world.dit.rotary(first, (width, x.shape[3], x.shape[4])),
        caption=captions[0],
        attend=teacher_forcing_slices(S, L, kv_range or config.sampling.kv_range, n, copies),
        cross=caption_slices(choice_G.repeat(1 + copies).tolist(), captions[1], n),
        previous=previous,
    )


def generate_one_step_ahead(
    world: World,
    shape: tuple[int, int],
    history: Tensor,
    noise: Tensor,
    t_history: Tensor | None = None,
    **condition: Any,
) -> Tensor:
    """Denoise every chunk over the ones given before it, as a rollout would.

    Args:
        world: whose DiT, time grid and number of steps.
        shape: S and L.
        history: the chunks that are seen, `[G, C, P, h, w]`.
        noise: where the denoising begins, `[R * G, C, P, h, w]`: R samples of every chunk.
        t_history: times of the history `[G]`, by default those of clean passes.
        condition: captions, choice, drops and KV range, see :func:`teacher_forced_inputs`.

    Returns:
        The samples `[R * G, C, P, h, w]`.
    """
    sampling = world.config.sampling
    grid = time_grid(sampling.num_steps, shift=sampling.shift, transform=sampling.transform)
    if t_history is None:
        t_history = torch.full((len(history),), sampling.clean_t)
    times = torch.ones(len(noise))
    x = noise
    for t, t_next in itertools.pairwise(grid):
        inputs = teacher_forced_inputs(
            world, shape, clean=(history, t_history), noisy=(x, times * t), **condition
        )
        x = x + world.dit(inputs).velocity[len(history) :] * (t_next - t)
    return x
