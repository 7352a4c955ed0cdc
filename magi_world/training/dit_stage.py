"""Stage 2: the video DiT and the text encoder learn to predict the next chunk.

Flow matching: the noisy copy of a chunk at time t must give the velocity from its noise to the
chunk. Times follow the sampler's own grid (uniform u through the same map), so most of the training
lies where few-step sampling evaluates. Histories are clean or carry up to a few percent of noise,
as in MAGI-1, so that the model bears its own small errors. In some batches a part of the history is
what the model itself makes of those chunks, one or several steps ahead: the errors that it must
bear are its own, not white noise (scheduled sampling, Bengio et al. 2015).

With the objective "energy" the stage goes on from there: the world's own sampler, one or two steps
long, is run on several noises, and its samples are judged by the energy score.

The chunk in which an episode ends is shown but not learnt where its last frames are a repeated
picture (Doom draws none after death): a model that generates still pictures would tell the
termination head what nobody could see.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magi_world.errors import DatasetError
from magi_world.models.dit import CaptionKV, VideoDiT
from magi_world.models.text import TextEncoder
from magi_world.players import chunk_prompts, chunk_wordings
from magi_world.sampling.schedule import warp
from magi_world.training.compiled import compiled_layers
from magi_world.training.energy_score import energy_score
from magi_world.training.recipe import DiTSettings
from magi_world.training.store import Store
from magi_world.training.teacher_forcing import (
    add_noise,
    concatenate_captions,
    draw_kv_range,
    generate_one_step_ahead,
    teacher_forced_inputs,
)
from magi_world.world import World

_UNUSUAL_MOST = 6.0  # squared deviations; a fireball close by lies at twenty


def initialise(dit: VideoDiT) -> None:
    """Start weights: small branches, so that a fresh model passes its input through.

    The post-norms undo any small start of the branches themselves, so the branches are kept small
    by the post-norms' own weights (stored minus one).
    """
    branch = (2 * len(dit.layers)) ** -0.5
    with torch.no_grad():
        for layer in dit.layers:
            layer.self_attn_post_norm.weight.fill_(branch - 1)
            layer.mlp_post_norm.weight.fill_(branch - 1)
        dit.final_linear.linear.weight.zero_()
        if dit.config.previous_chunk:
            dit.keep.weight.zero_()
            dit.keep.bias.zero_()
        dit.y_embedder.null_caption_embedding.normal_(std=0.5)


class Sequences:
    """Random stretches of consecutive chunks from one part of the split."""

    def __init__(self, store: Store, latents: np.ndarray[Any, Any], length: int, held_out: bool):
        starts, ends = [], []
        for episode in store.episodes(held_out):
            first, end = int(store.offsets[episode]), int(store.offsets[episode + 1])
            if end - first >= length:
                starts.append(first)
                ends.append(end - length + 1)
        if not starts:
            raise DatasetError(f"no episode has {length} chunks: shorten `sequence` in the recipe")
        # every stretch of every episode is equally likely
        self.choices = torch.cat([torch.arange(a, b) for a, b in zip(starts, ends, strict=True)])
        self.length = length
        self.latents = torch.from_numpy(latents)
        self.action = torch.from_numpy(store.action)
        # an end whose chunk is real to its last frame can be learnt like any other chunk
        filled = store.valid < store.frames.shape[1]
        self.terminal = torch.from_numpy(store.terminal & filled)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Rows of the store, `[count, length]`."""
        picks = torch.randint(len(self.choices), (count,), generator=generator)
        return self.choices[picks][:, None] + torch.arange(self.length)


@dataclass(frozen=True, kw_only=True)
class _Batch:
    """Sequences of chunks, chunk by chunk, and what is told and seen beside them."""

    x_GCPHW: Tensor
    history_GCPHW: Tensor
    """what the model is shown of them as history, with a little noise"""
    t_history_G: Tensor
    shape: tuple[int, int]
    """S and L"""
    condition: dict[str, Any]
    """captions, choice, drops and KV range, see :func:`teacher_forced_inputs`"""
    weight_G: Tensor
    """how much each chunk is learnt from, 0 for those that cannot be"""


class DiTStage:
    """Velocity prediction on random sequences of training chunks."""

    name = "dit"
    progress = 0.0

    def __init__(self, world: World, store: Store, settings: DiTSettings) -> None:
        assert isinstance(world.text, TextEncoder)
        self.world = world
        self.settings = settings
        self.module = nn.ModuleDict({"dit": world.dit, "text": world.text})
        latents = store.latents()
        known = np.flatnonzero(~store.held_out)[::16]
        self.mean_CPHW = torch.from_numpy(latents[known].mean(0, dtype=np.float32))
        self.sequences = Sequences(store, latents, settings.sequence, held_out=False)
        self.held_out = Sequences(store, latents, settings.sequence, held_out=True)
        self.wordings = chunk_wordings(world.card)

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean error of the objective on one random batch."""
        count = self.settings.batch_size // self.settings.workers
        batch = self._batch(self.sequences, count, generator)
        objective = self._energy if self.settings.objective == "energy" else self._flow
        with compiled_layers(self.world.dit) if self.settings.compile else nullcontext():
            error_G = objective(batch, generator)
        loss = (error_G * batch.weight_G).sum() / batch.weight_G.sum()
        error_SL = (error_G.detach() * (batch.weight_G > 0)).unflatten(0, batch.shape)
        return loss, {"first_chunk": error_SL[:, 0].mean(), "last_chunk": error_SL[:, -1].mean()}

    def _batch(self, sequences: Sequences, count: int, generator: torch.Generator) -> "_Batch":
        rows_SL = sequences.draw(count, generator)
        shape = (rows_SL.shape[0], rows_SL.shape[1])
        rows = rows_SL.flatten()
        x = sequences.latents[rows].float()
        choice, captions = self._captions(sequences.action[rows], generator)
        condition: dict[str, Any] = {
            "captions": captions, "choice_G": choice, "dropped_G": choice == len(captions[1]) - 1,
            "kv_range": draw_kv_range(self.settings.most_kv_range, generator),
        }  # fmt: skip
        t_history = self._history_times(len(x), generator)
        before = self._history(x, shape, condition, generator)
        noise = torch.randn(x.shape, generator=generator)
        return _Batch(
            x_GCPHW=x,
            history_GCPHW=add_noise(before, noise, t_history),
            t_history_G=t_history,
            shape=shape,
            condition=condition,
            weight_G=self._turns(sequences.action[rows_SL]) * ~sequences.terminal[rows],
        )

    def _flow(self, batch: "_Batch", generator: torch.Generator) -> Tensor:
        """Squared error of the velocity, mean over the copies, `[G]`."""
        x_GCPHW, copies = batch.x_GCPHW, self.settings.copies
        x_RG, noise_RG = x_GCPHW.repeat(copies, 1, 1, 1, 1), self._noise(x_GCPHW, generator)
        t_RG = self._times(len(x_GCPHW), generator)
        noisy = (add_noise(x_RG, noise_RG, t_RG), t_RG)
        clean = (batch.history_GCPHW, batch.t_history_G)
        inputs = teacher_forced_inputs(
            self.world, batch.shape, clean=clean, noisy=noisy, **batch.condition
        )
        velocity = self.world.dit(inputs).velocity[len(x_GCPHW) :]
        error_RG = (velocity - (x_RG - noise_RG)).square().mean((1, 2, 3, 4))
        error_G: Tensor = error_RG.view(copies, -1).mean(0)
        return error_G

    def _energy(self, batch: "_Batch", generator: torch.Generator) -> Tensor:
        """Energy score of the copies as samples of the world's own sampler, `[G]`."""
        noise_RG = self._noise(batch.x_GCPHW, generator)
        samples_RG = generate_one_step_ahead(
            self.world, batch.shape, batch.history_GCPHW, noise_RG, batch.t_history_G,
            **batch.condition,
        ).unflatten(0, (self.settings.copies, -1))  # fmt: skip
        weight_Ghw = self._unusual(batch.history_GCPHW, batch.shape)
        return energy_score(samples_RG, batch.x_GCPHW, weight_Ghw=weight_Ghw)

    def _unusual(self, history_GCPHW: Tensor, shape: tuple[int, int]) -> Tensor:
        """Weights of the places of each chunk, mean 1, `[G, h, w]`.

        A place weighs more the further it, or one beside it, lay from the mean picture in the chunk
        before: that is where something small may be that moves. The first chunk of a sequence has
        nothing before it and equal weights.
        """
        far_GHW = (history_GCPHW - self.mean_CPHW).square().mean((1, 2))
        around_GHW = F.max_pool2d(far_GHW[:, None], 3, stride=1, padding=1)[:, 0]
        weight = 1 + self.settings.unusual_weight * around_GHW.clamp(max=_UNUSUAL_MOST)
        weight_SLHW: Tensor = weight.unflatten(0, shape).roll(1, dims=1)
        weight_SLHW[:, 0] = weight.mean()
        return weight_SLHW.flatten(0, 1) / weight.mean()

    def _turns(self, action_SL: Tensor) -> Tensor:
        """Weights of chunks by whether their action is new, `[G]`.

        What came before the first chunk of a sequence is not asked.
        """
        new_SL = torch.zeros_like(action_SL, dtype=torch.bool)
        new_SL[:, 1:] = action_SL[:, 1:] != action_SL[:, :-1]
        soon_SL = new_SL | new_SL.roll(1, dims=1)
        soon_SL[:, 0] = new_SL[:, 0]
        return (1 + self.settings.turn_weight * soon_SL).flatten()

    def _noise(self, x_GCPHW: Tensor, generator: torch.Generator) -> Tensor:
        """Fresh noise for every copy of the chunks, `[R * G, C, P, h, w]`."""
        shape = (self.settings.copies * x_GCPHW.shape[0], *x_GCPHW.shape[1:])
        return torch.randn(shape, generator=generator)

    @torch.no_grad()
    def _history(
        self,
        x_GCPHW: Tensor,
        shape: tuple[int, int],
        condition: dict[str, Any],
        generator: torch.Generator,
    ) -> Tensor:
        """What the noisy copies see of the sequences: the chunks, or the model's own of some.

        In a batch that is chosen for it, a share of each sequence's chunks, drawn anew, is
        generated one step ahead of those before them; done again on what that gave, every chunk
        follows two generated ones, and so on to a depth that is drawn.
        """
        S, L = shape
        drawn = torch.rand((), generator=generator) < self.settings.own_history
        if not drawn or self.progress < self.settings.own_after:
            return x_GCPHW
        depth = int(torch.randint(self.settings.own_depth, (), generator=generator)) + 1
        history = x_GCPHW
        for _ in range(depth):
            # half of the sequences are generated whole, as in a rollout
            share_S = (2 * torch.rand(S, generator=generator)).clamp(max=1)
            own_SL = torch.rand(S, L, generator=generator) < share_S[:, None]
            own_SL[:, 0] = False  # nothing comes before it
            noise = torch.randn(x_GCPHW.shape, generator=generator)
            generated = generate_one_step_ahead(self.world, shape, history, noise, **condition)
            history = torch.where(own_SL.view(-1, 1, 1, 1, 1), generated, x_GCPHW)
        return history

    def _times(self, count: int, generator: torch.Generator) -> Tensor:
        """Times in [0, 1) that follow the map of the sampler's grid, `[R * count]`.

        The R copies of a chunk take one time in each of R equal parts of the grid.
        """
        sampling, copies = self.world.config.sampling, self.settings.copies
        u_RG = torch.rand(copies, count, generator=generator) + torch.arange(copies)[:, None]
        return warp(u_RG.flatten() / copies, shift=sampling.shift, transform=sampling.transform)

    def _history_times(self, count: int, generator: torch.Generator) -> Tensor:
        """Times of the clean copies: half of them clean, the others slightly noised."""
        noised = torch.rand(count, generator=generator) < 0.5
        amount = torch.rand(count, generator=generator) * self.settings.history_noise
        clean_t = self.world.config.sampling.clean_t
        return torch.where(noised, clean_t - amount, torch.full_like(amount, clean_t))

    def _captions(
        self, action_G: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, tuple[CaptionKV, list[int]]]:
        """A wording for every chunk; the last caption is the null caption.

        Only a few wordings of every action are encoded per batch, each once.
        """
        settings, world = self.settings, self.world
        count = settings.paraphrases
        texts: list[str] = []
        for wordings in self.wordings:
            order = torch.randperm(len(wordings), generator=generator)[:count].tolist()
            texts += [wordings[i] for i in (order * count)[:count]]
        assert isinstance(world.text, TextEncoder)
        tokens, lengths = world.text(texts)
        null = world.dit.y_embedder.null_caption_embedding[
            : world.config.sampling.null_prompt_tokens
        ]
        caption = concatenate_captions([world.dit.caption_kv(tokens), world.dit.caption_kv(null)])
        wording = torch.randint(count, action_G.shape, generator=generator)
        dropped = torch.rand(action_G.shape, generator=generator) < settings.caption_dropout
        choice = torch.where(dropped, len(texts), action_G * count + wording)
        return choice, (caption, [*lengths, null.shape[0]])

    @torch.no_grad()
    def sample(self) -> dict[str, Tensor]:
        """Held-out stretches, real above dreamed (open loop from half a stretch on)."""
        generator = torch.Generator().manual_seed(1)
        count, length = 4, self.held_out.length
        rows_SL = self.held_out.draw(count, generator)
        x = self.held_out.latents[rows_SL].float()  # [S, L, C, P, h, w]
        prompts = chunk_prompts(self.world.card)
        self.world.forget_captions()  # those of older weights
        rollout = self.world.rollout(count, seeds=range(count))
        half = length // 2
        rollout.reset(prompt=prompts[0])
        for slot in range(count):
            rollout.cache.clear(slot)
        dreamed = [x[:, i] for i in range(half)]
        for i in range(half):
            texts = [prompts[a] for a in self.held_out.action[rows_SL[:, i]].tolist()]
            rollout.observe(x[:, i], texts)
        for i in range(half, length):
            texts = [prompts[a] for a in self.held_out.action[rows_SL[:, i]].tolist()]
            dreamed.append(rollout.step(texts).latents)
        real = torch.cat([self.world.decode(x[:, i]) for i in range(length)], dim=1)
        dream = torch.cat([self.world.decode(chunk) for chunk in dreamed], dim=1)
        both = torch.cat([real, dream], dim=2)  # [S, T, 2H, W, 3]
        return {"real_above_dream": torch.cat(list(both), dim=2)}
