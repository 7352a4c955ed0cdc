"""The stage that teaches a trained world more wordings of its prompts.

A video model sees few wordings of an action while it learns, and each costs it samples. What it
does when it is told its own prompts is known afterwards, so further wordings can be learned from
the model itself: told one of them it must make, out of the same noise, the very chunk that it makes
when it is told the prompt (distillation, Hinton et al. 2015, with the video model as the measure of
how far two captions lie apart). Histories are the real clips that every world ships with, so this
takes no data and minutes, not hours; the prompts are among the wordings, and stay what they were.

The error is told in units of what prompts do: 0 if a wording does the same as its prompt, 1 if it
is as far from it as the other prompts are.

Shape suffixes as in `training/teacher_forcing.py`: S clips, L chunks of each, G = S * L.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from magi_world.errors import ConfigError
from magi_world.models.text import TextEncoder
from magi_world.players import chunk_prompts, compose, players_of, split_actions
from magi_world.sampling.schedule import time_grid
from magi_world.training.recipe import WordsSettings
from magi_world.training.teacher_forcing import (
    add_noise,
    concatenate_captions,
    teacher_forced_inputs,
)
from magi_world.world import World

_BATCHES = 8  # of clips, for an error that is told


class WordsStage:
    """The text encoder under more wordings, with what it was as the teacher.

    Args:
        world: a trained one, with clips; its DiT is frozen.
        settings: how it learns.
        wordings: all wordings of each prompt of the card, the prompt itself first.

    Raises:
        ConfigError: a world without a text encoder of its own, without clips, or of one prompt.
    """

    name = "words"
    progress = 0.0

    def __init__(
        self, world: World, settings: WordsSettings, wordings: Mapping[str, Sequence[str]]
    ) -> None:
        if not isinstance(world.text, TextEncoder):
            raise ConfigError(f"{world.name!r} has no text encoder of its own to learn words")
        lengths = [len(latents) for latents in world.bank.latents]
        clips = [i for i, length in enumerate(lengths) if length == max(lengths)]
        if not clips:
            raise ConfigError(f"{world.name!r} has no clips: there is nothing to learn words on")
        self.world = world
        self.settings = settings
        self.wordings = wordings
        self.module: nn.Module = world.text
        self.teacher: nn.Module = copy.deepcopy(world.text).requires_grad_(False)
        world.dit.requires_grad_(False)
        self.prompts = chunk_prompts(world.card)
        if len(self.prompts) < 2:
            raise ConfigError(f"{world.name!r} has one prompt: no wording could mean another")
        number = {prompt: index for index, prompt in enumerate(self.prompts)}
        self.clips_NLCPHW = torch.stack([world.bank.latents[i] for i in clips])
        self.action_NL = torch.tensor([[number[p] for p in world.bank.prompts[i]] for i in clips])
        self.effect = self._effect()

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean error of wordings, drawn for every chunk, on one batch of clips."""
        error_G, _ = self._error(self.wordings, generator)
        return error_G.mean(), {}

    @torch.no_grad()
    def error(self, wordings: Mapping[str, Sequence[str]], seed: int = 0) -> float:
        """Mean error of these wordings over some batches.

        A prompt without any is told as it is, and its chunks do not count; in a world of several
        players those do not count in which nobody's action has any.
        """
        generator = torch.Generator().manual_seed(seed)
        names, players = self.world.card["prompts"], max(1, len(players_of(self.world.card)))
        reworded = torch.tensor(
            [
                any(wordings.get(names[a]) for a in split_actions(prompt, len(names), players))
                for prompt in range(len(self.prompts))
            ]
        )
        errors = []
        for _ in range(_BATCHES):
            error_G, action_G = self._error(wordings, generator)
            errors.append(error_G[reworded[action_G]])
        return float(torch.cat(errors).mean())

    def sample(self) -> dict[str, Tensor]:
        """Nothing to show: the pictures stay what they were."""
        return {}

    @torch.no_grad()
    def _effect(self) -> Tensor:
        """Mean squared distance between what two different prompts make, of samples and hidden
        states, `[2]`."""
        generator = torch.Generator().manual_seed(0)
        apart = []
        for _ in range(_BATCHES):
            batch = self._batch(generator)
            turn = torch.randint(1, len(self.prompts), batch[0].shape, generator=generator)
            other_G = (batch[0] + turn) % len(self.prompts)
            one = self._made(self.teacher, self.prompts, batch[0], *batch[1:])
            other = self._made(self.teacher, self.prompts, other_G, *batch[1:])
            apart.append(_distance(one, other))
        return torch.cat(apart).mean(0)

    def _batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Actions `[G]`, clips `[S, L, C, P, h, w]`, their noise and its time `[G]`."""
        picks = torch.randint(
            len(self.clips_NLCPHW), (self.settings.batch_size,), generator=generator
        )
        x = self.clips_NLCPHW[picks].float()
        sampling = self.world.config.sampling
        grid = time_grid(sampling.num_steps, shift=sampling.shift, transform=sampling.transform)
        times = torch.as_tensor(grid[:-1], dtype=torch.float32)
        action_G = self.action_NL[picks].flatten()
        t_G = times[torch.randint(len(times), action_G.shape, generator=generator)]
        return action_G, x, torch.randn(x.shape, generator=generator), t_G

    def _error(
        self, wordings: Mapping[str, Sequence[str]], generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Errors `[G]` of one batch, and its actions."""
        action_G, x, noise, t_G = self._batch(generator)
        texts, count = self._draw(wordings, generator)
        wording = torch.randint(count, action_G.shape, generator=generator)
        with torch.no_grad():
            meant = self._made(self.teacher, self.prompts, action_G, x, noise, t_G)
        said = self._made(self.module, texts, action_G * count + wording, x, noise, t_G)
        return (_distance(said, meant) / self.effect).mean(1), action_G

    def _draw(
        self, wordings: Mapping[str, Sequence[str]], generator: torch.Generator
    ) -> tuple[list[str], int]:
        """Wordings of every prompt, as many of each, one prompt after the other."""
        card, count = self.world.card, self.settings.wordings
        names: list[str] = card["prompts"]

        def some(action: int) -> list[str]:
            known = wordings.get(names[action]) or names[action : action + 1]
            order = torch.randperm(len(known), generator=generator)[:count].tolist()
            return [known[i] for i in (order * count)[:count]]

        players = players_of(card)
        texts: list[str] = []
        for prompt in range(len(self.prompts)):
            if not players:
                texts += some(prompt)
                continue
            actions = [int(a) for a in split_actions(prompt, len(names), len(players))]
            said = zip(*(some(action) for action in actions), strict=True)
            texts += [compose(card, dict(zip(players, words, strict=True))) for words in said]
        return texts, count

    def _made(
        self,
        encoder: nn.Module,
        texts: Sequence[str],
        choice_G: Tensor,
        x_SLCPHW: Tensor,
        noise: Tensor,
        t_G: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """What the video model makes of clips under the chosen texts: velocities and hidden states
        of clean passes."""
        world, shape = self.world, (x_SLCPHW.shape[0], x_SLCPHW.shape[1])
        tokens, lengths = encoder(texts)
        clean, noise = x_SLCPHW.flatten(0, 1), noise.flatten(0, 1)
        inputs = teacher_forced_inputs(
            world, shape,
            clean=(clean, torch.full_like(t_G, world.config.sampling.clean_t)),
            noisy=(add_noise(clean, noise, t_G), t_G),
            captions=(concatenate_captions([world.dit.caption_kv(tokens)]), lengths),
            choice_G=choice_G, dropped_G=torch.zeros_like(choice_G, dtype=torch.bool),
        )  # fmt: skip
        out = world.dit(inputs)
        return out.velocity[len(clean) :], out.hidden[: len(clean)]


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """Mean squared differences of each chunk, one number a kind, `[G, 2]`."""
    return torch.stack(
        [(a - b).square().flatten(1).mean(1) for a, b in zip(one, other, strict=True)], dim=1
    )
