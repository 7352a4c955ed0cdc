"""Stage 3: the outcome heads learn from the hidden states of clean passes.

They are trained on chunks that the model itself generates, one step ahead of a real history with
the real action, because that is what they will judge; the real chunks that were there beside them
take part too. Chunks near an episode's end, and those with an unusual reward such as a point, are
drawn more often than they occur and weighted back, so that probabilities stay calibrated.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from magi_world.errors import DatasetError
from magi_world.models.dit import CaptionKV
from magi_world.models.outcome import OutcomeHead
from magi_world.players import chunk_prompts
from magi_world.training.recipe import OutcomeSettings
from magi_world.training.store import Store
from magi_world.training.teacher_forcing import (
    concatenate_captions,
    draw_kv_range,
    generate_one_step_ahead,
    teacher_forced_inputs,
)
from magi_world.world import World

_BATCH = 16  # sequences generated together
_RARE = (
    0.5  # stretches with an unusual reward are drawn more often if fewer than this share have one
)
_REWARD_WEIGHT = 0.8  # of squared errors in units of the card's reward range
_SIGNAL_WEIGHT = 10.0


class Examples:
    """Hidden states of clean passes with what really happened.

    Attributes:
        hidden: float16 `[N, n, E]`.
        reward: float32 `[N]`, or `[N, players]`.
        terminal: float32 `[N]`.
        signals: float32 `[N, signals]`.
        weight: float32 `[N]`, how many chunks of the data each stands for.
    """

    def __init__(self) -> None:
        self.parts: dict[str, list[Tensor]] = {}

    def add(self, **tensors: Tensor) -> None:
        for name, tensor in tensors.items():
            self.parts.setdefault(name, []).append(tensor)

    def cat(self) -> dict[str, Tensor]:
        return {name: torch.cat(parts) for name, parts in self.parts.items()}


def damage(store: Store) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Health lost in each chunk as a share of 100; 0 in reset chunks and where unknown."""
    lost = np.zeros(len(store.health), dtype=np.float32)
    lost[1:] = (store.health[:-1] - store.health[1:]) / 100
    lost[store.offsets[:-1]] = 0
    return np.clip(np.nan_to_num(lost), 0, 1)


def kept_chunks(length: int) -> int:
    """Chunks of a stretch that become examples: its second half, the first is history only."""
    return length - length // 2


def sequence_strata(
    store: Store, length: int, held_out: bool
) -> tuple[list[int], list[int], float]:
    """First rows of the stretches that end an episode by termination, and of all others.

    Returns:
        Starts of the ends, starts of the others, and the number of chunks the others stand for.
    """
    ends, others, chunks = [], [], 0.0
    for episode in store.episodes(held_out):
        first, end = int(store.offsets[episode]), int(store.offsets[episode + 1])
        if end - first <= length:
            continue
        last = end
        if store.terminal[end - 1]:
            ends.append(end - length)
            last = end - kept_chunks(length)  # what the stretch that ends here does not keep
        others += list(range(first + 1, last - length + 1))
        chunks += last - first - 1
    return ends, others, chunks


def too_short(length: int) -> str:
    """What is wrong where `sequence_strata` finds no other stretches in all data."""
    dead = length + kept_chunks(length) + 1
    return (
        f"no episode that goes on has {length + 1} chunks, none that ends in a death {dead}: "
        "shorten `sequence` in the recipe"
    )


def _plan(
    store: Store, length: int, chunks: int, held_out: bool, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of rows `[S, L]` with the weight of each chunk `[S]`."""
    ends, others, population = sequence_strata(store, length, held_out)
    if not others:
        raise DatasetError(too_short(length))
    half = max(1, chunks // 2 // length)
    repeats = max(1, half // max(1, len(ends)))
    starts = [start for start in ends for _ in range(repeats)]
    weights = [1.0 / repeats] * len(starts)
    strata = _by_reward(store, others, length)
    for stratum in strata:
        count = max(1, half // len(strata))
        picks = torch.randint(len(stratum), (count,), generator=generator).tolist()
        starts += [stratum[i] for i in picks]
        stands_for = population * len(stratum) / len(others)
        weights += [stands_for / (count * kept_chunks(length))] * count
    order = torch.randperm(len(starts), generator=generator)
    rows = torch.tensor(starts)[order][:, None] + torch.arange(length)
    weight = torch.tensor(weights)[order]
    for i in range(0, len(rows), _BATCH):
        yield rows[i : i + _BATCH], weight[i : i + _BATCH]


def _by_reward(store: Store, starts: list[int], length: int) -> list[list[int]]:
    """Starts of stretches that keep a chunk with an unusual reward, and the others' starts.

    One list where most stretches are of one sort anyway.
    """
    happens = np.concatenate([[0], store.unusual_rewards().cumsum()])
    first = np.array(starts) + length - kept_chunks(length)
    has_one = happens[first + kept_chunks(length)] > happens[first]
    if not 0 < has_one.mean() < _RARE:
        return [starts]
    return [np.array(starts)[has_one].tolist(), np.array(starts)[~has_one].tolist()]


def _captions(world: World) -> tuple[CaptionKV, list[int]]:
    parts = [world.caption(prompt) for prompt in chunk_prompts(world.card)]
    return concatenate_captions(parts), [part[0][0].shape[0] for part in parts]


@torch.inference_mode()
def generate_examples(
    world: World,
    store: Store,
    *,
    length: int,
    chunks: int,
    held_out: bool,
    seed: int,
    most_kv_range: int = 0,
    console: Console | None = None,
) -> dict[str, Tensor]:
    """Generate chunks one step ahead of real histories and collect their clean passes.

    The first half of every stretch serves as history only, so each example has as much of it as a
    rollout that has been running.

    Args:
        world: a world with trained DiT.
        store: real data.
        length: chunks in a stretch.
        chunks: about how many generated chunks; the real ones come on top.
        held_out: which part of the split.
        seed: of all draws.
        most_kv_range: as in `DiTSettings`: what a DiT learned at several ranges, its heads do too.
        console: shows progress.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = torch.from_numpy(store.latents())
    lost = torch.from_numpy(damage(store))
    captions = _captions(world)
    examples, done, skip = Examples(), 0, length - kept_chunks(length)
    for rows_SL, weight_S in _plan(store, length, 2 * chunks, held_out, generator):
        S, L = rows_SL.shape
        rows = rows_SL.flatten()
        real = latents[rows].float()
        kv_range = draw_kv_range(most_kv_range, generator)
        x, hidden = _one_step_ahead(
            world, real, torch.from_numpy(store.action)[rows], (S, L), captions, kv_range, generator
        )
        hidden = hidden.half().unflatten(0, (2, S, L))[:, :, skip:]
        kept = rows_SL[:, skip:].flatten().repeat(2)
        terminal = torch.from_numpy(store.terminal)[kept]
        examples.add(
            hidden=hidden.flatten(0, 2),
            reward=torch.from_numpy(store.reward)[kept].clamp(*world.card["reward_range"]),
            terminal=terminal.float(),
            signals=lost[kept][:, None],
            weight=weight_S[:, None].expand(S, L - skip).flatten().repeat(2),
        )
        done += S * (L - skip)
        if console is not None and (done // (S * (L - skip))) % 20 == 0:
            console.print(f"outcome: {done} chunks generated", soft_wrap=True)
    return examples.cat()


def _one_step_ahead(
    world: World,
    real: Tensor,
    action_G: Tensor,
    shape: tuple[int, int],
    captions: tuple[CaptionKV, list[int]],
    kv_range: int | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Every chunk generated from its real history, and the clean passes of both copies.

    Returns:
        Generated latents `[G, C, P, h, w]`, and hidden states `[2 * G, n, E]`, real ones first.
    """
    condition: dict[str, Any] = {
        "captions": captions,
        "choice_G": action_G,
        "dropped_G": torch.zeros_like(action_G, dtype=torch.bool),
        "kv_range": kv_range,
    }
    noise = torch.randn(real.shape, generator=generator)
    x = generate_one_step_ahead(world, shape, real, noise, **condition)
    t = torch.full(action_G.shape, world.config.sampling.clean_t)
    inputs = teacher_forced_inputs(world, shape, clean=(real, t), noisy=(x, t), **condition)
    hidden: Tensor = world.dit(inputs).hidden
    return x, hidden


class OutcomeStage:
    """Reward, termination and signals of the examples."""

    name = "outcome"
    progress = 0.0

    def __init__(
        self,
        head: OutcomeHead,
        examples: Callable[[], dict[str, Tensor]],
        settings: OutcomeSettings,
        reward_range: Sequence[float],
    ) -> None:
        """Set up; ``examples`` is called once, when the first loss is asked for."""
        self.reward_weight = _REWARD_WEIGHT / ((reward_range[1] - reward_range[0]) or 1.0) ** 2
        self.module = head
        self.examples = cache(examples)
        self.batch_size = settings.batch_size

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted cross-entropy of termination and squared errors of reward and signals."""
        examples = self.examples()
        picks = torch.randint(len(examples["reward"]), (self.batch_size,), generator=generator)
        batch = {name: tensor[picks] for name, tensor in examples.items()}
        outcome = self.module(batch["hidden"].float())
        weight = batch["weight"] / batch["weight"].mean()
        termination = F.binary_cross_entropy_with_logits(
            outcome.termination_logit, batch["terminal"], weight=weight
        )
        error_N = (outcome.reward - batch["reward"]).square().view(len(picks), -1).mean(1)
        reward = (weight * error_N).mean()
        loss = termination + self.reward_weight * reward
        scalars = {"termination": termination.detach(), "reward": reward.detach()}
        if outcome.signals.shape[1]:
            error = (outcome.signals - batch["signals"]).square().mean(1)
            loss = loss + _SIGNAL_WEIGHT * (weight * error).mean()
            scalars["signals"] = error.detach().mean()
        return loss, scalars

    def sample(self) -> dict[str, Tensor]:
        """The heads have nothing to show."""
        return {}
