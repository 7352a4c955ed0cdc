"""More wordings for a trained world: its text encoder learns them, nothing else changes.

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
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor, nn

from magi_world.disk import check_folder
from magi_world.errors import ConfigError, RecipeError, missing_package
from magi_world.models.text import TextEncoder
from magi_world.players import chunk_prompts, compose, players_of, split_actions
from magi_world.sampling.schedule import time_grid
from magi_world.training.loop import Trainer
from magi_world.training.recipe import Recipe, WordsSettings
from magi_world.training.recipe_card import check_meanings
from magi_world.training.teacher_forcing import (
    add_noise,
    concatenate_captions,
    teacher_forced_inputs,
)
from magi_world.world import World, load

MEASURED = ("evaluation", "agents", "compared")
"""entries of a card that say what the world measured, and no longer hold when it learned more"""
_BATCHES = 8  # of clips, for an error that is told


def expand(recipe: Recipe) -> dict[str, list[str]]:
    """All wordings of each prompt: itself, its paraphrases, and what the patterns stand for.

    Raises:
        RecipeError: there are no patterns, braces without their other half, or a wording that is no
            prompt, stands for two, or is held out to judge by.
        MissingPackage: braceexpand is absent.
    """
    if recipe.words is None or not recipe.patterns:
        raise RecipeError(f"{recipe.path} has no section [words.patterns] with more wordings")
    try:
        from braceexpand import braceexpand
    except ImportError as error:
        raise missing_package("braceexpand", "data", "patterns of wordings") from error
    card = recipe.card
    wordings: dict[str, list[str]] = {}
    source = f"{recipe.path} [words.patterns]"
    for prompt in card["prompts"]:
        said = {prompt: None, **dict.fromkeys(card.get("paraphrases", {}).get(prompt, ()))}
        for pattern in recipe.patterns.get(prompt, ()):
            try:
                said |= dict.fromkeys(braceexpand(pattern))
            except ValueError:
                raise RecipeError(f"{source}: braces of {pattern!r} are not closed") from None
        wordings[prompt] = list(said)
    held_out = [
        (words, f"{prompt}, held out")
        for prompt, texts in card.get("held_out_paraphrases", {}).items()
        for words in texts
    ]
    said_of = [(words, prompt) for prompt, texts in wordings.items() for words in texts]
    check_meanings([*held_out, *said_of], recipe.config.text, source)
    return wordings


class WordsStage:
    """The text encoder under more wordings, with what it was as the teacher.

    Args:
        world: a trained one, with clips; its DiT is frozen.
        settings: how it learns.
        wordings: all wordings of each prompt of the card, the prompt itself first.

    Raises:
        ConfigError: a world without a text encoder of its own, or without clips.
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
        number = {prompt: index for index, prompt in enumerate(self.prompts)}
        self.clips_NLCPHW = torch.stack([world.bank.latents[i] for i in clips])
        self.action_NL = torch.tensor([[number[p] for p in world.bank.prompts[i]] for i in clips])
        self.effect = self._effect()

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean error of wordings, drawn for every chunk, on one batch of clips."""
        error = self._error(self.wordings, generator)
        return error, {}

    @torch.no_grad()
    def error(self, wordings: Mapping[str, Sequence[str]], seed: int = 0) -> float:
        """Mean error of these wordings over some batches; a prompt without any is told as it is."""
        generator = torch.Generator().manual_seed(seed)
        errors = [self._error(wordings, generator) for _ in range(_BATCHES)]
        return float(torch.stack(errors).mean())

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
        return torch.stack(apart).mean(0)

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

    def _error(self, wordings: Mapping[str, Sequence[str]], generator: torch.Generator) -> Tensor:
        action_G, x, noise, t_G = self._batch(generator)
        texts, count = self._draw(wordings, generator)
        wording = torch.randint(count, action_G.shape, generator=generator)
        with torch.no_grad():
            meant = self._made(self.teacher, self.prompts, action_G, x, noise, t_G)
        said = self._made(self.module, texts, action_G * count + wording, x, noise, t_G)
        return (_distance(said, meant) / self.effect).mean()

    def _draw(
        self, wordings: Mapping[str, Sequence[str]], generator: torch.Generator
    ) -> tuple[list[str], int]:
        """Wordings of every prompt, as many of each, one prompt after the other."""
        card, count = self.world.card, self.settings.wordings
        names: list[str] = card["prompts"]

        def some(action: int) -> list[str]:
            known = wordings.get(names[action], names[action : action + 1])
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
    """Mean squared differences of each kind, one number a kind."""
    return torch.stack([(a - b).square().mean() for a, b in zip(one, other, strict=True)])


def train_words(
    recipe: Recipe,
    world: str | Path,
    out: Path,
    *,
    resume: bool = False,
    console: Console | None = None,
) -> World:
    """Teach a world the recipe's wordings; everything that this makes lies in ``out``.

    Args:
        recipe: with a section `[words]`.
        world: a name or folder; it stays as it is.
        out: folder of the checkpoint, the TensorBoard log and the new world.
        resume: go on from the checkpoint in ``out``, begun with the same world.
        console: where progress goes, standard error by default.

    Returns:
        The world with its new text encoder, also saved in `out/world`, and an agent in its folder
        with it. Its card tells under `training` the errors (see this module) of the wordings that
        it learned, and of those held out, now and before; what the card had measured is left out.

    Raises:
        RecipeError: no wordings, wordings that cannot be used, prompts that are not the world's,
            or ``out`` holds a run and ``resume`` is False, or is no place to write in.
        ConfigError: the world has no text encoder of its own, or no clips.
        WorldNotFound: ``world`` is none.
    """
    console = console or Console(stderr=True)
    wordings = expand(recipe)
    assert recipe.words is not None
    check_folder(out, RecipeError)
    first = load(world)
    if first.card["prompts"] != recipe.card["prompts"]:
        raise RecipeError(
            f"{recipe.path} has the prompts {recipe.card['prompts']}, {first.name!r} "
            f"{first.card['prompts']}"
        )
    if not resume and any(out.glob("*.checkpoint.safetensors")):
        raise RecipeError(f"{out} holds a run already: resume it or choose another folder")
    stage = WordsStage(first, recipe.words, wordings)
    judged: dict[str, Mapping[str, Sequence[str]]] = {"learned": wordings}
    if held_out := recipe.card.get("held_out_paraphrases"):
        judged["held_out"] = held_out
    before = {name: stage.error(texts) for name, texts in judged.items()}
    run = Trainer(stage, recipe.words, out, resume=resume, console=console)
    run.run()
    told = {
        name: {"before": before[name], "now": stage.error(texts)} for name, texts in judged.items()
    }
    first.card = {key: value for key, value in first.card.items() if key not in MEASURED}
    first.card["training"] = {
        **first.card.get("training", {}),
        "words_steps": recipe.words.steps,
        "words_minutes": round(run.seconds / 60, 1),
        "wordings": {prompt: len(texts) for prompt, texts in wordings.items()},
        "wording_error": told,
    }
    for key in ("paraphrases", "held_out_paraphrases"):
        if key in recipe.card:
            first.card[key] = recipe.card[key]
    first.save(out / "world")
    if first.folder is not None and (first.folder / "agent").is_dir():
        shutil.copytree(first.folder / "agent", out / "world" / "agent", dirs_exist_ok=True)
    return load(out / "world")
