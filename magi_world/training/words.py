"""More wordings for a trained world: its text encoder learns them, nothing else changes.

`training/words_stage.py` says how; here patterns become wordings, and a run has its folder.
"""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from magi_world.disk import check_folder, write_text
from magi_world.errors import RecipeError, missing_package
from magi_world.training.loop import Trainer
from magi_world.training.recipe import Recipe
from magi_world.training.recipe_card import check_meanings
from magi_world.training.store import told_if_damaged
from magi_world.training.words_stage import WordsStage
from magi_world.world import World, load

MEASURED = ("evaluation", "agents", "compared")
"""entries of a card that say what the world measured, and no longer hold when it learned more"""
_BEGUN = "words.json"  # what a run in a folder learns
_MAY_CHANGE = ("steps", "checkpoint_minutes", "log_every", "sample_every")


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
            if not isinstance(pattern, str):
                raise RecipeError(f"{source}: {pattern!r} for {prompt!r} is no text")
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
        with it. Its card tells under `training` the errors (see `training/words_stage.py`) of the
        prompts themselves, of all wordings that it learned, and of those held out, before and now;
        what the card had measured is left out.

    Raises:
        RecipeError: no wordings, wordings that cannot be used, prompts that are not the world's,
            or ``out`` is no place to write in, or holds the world itself, another training, or a
            run that is not to be resumed or learns something else.
        ConfigError: the world has no text encoder of its own, no clips, or one prompt.
        WorldNotFound: ``world`` is none.
    """
    console = console or Console(stderr=True)
    wordings = expand(recipe)
    assert recipe.words is not None
    check_folder(out, RecipeError)
    first = load(world)
    if first.folder is not None and first.folder.resolve() == (out / "world").resolve():
        raise RecipeError(f"{out} holds the world that is to learn, which stays as it is")
    if first.card["prompts"] != recipe.card["prompts"]:
        raise RecipeError(
            f"{recipe.path} has the prompts {recipe.card['prompts']}, {first.name!r} "
            f"{first.card['prompts']}"
        )
    stage = WordsStage(first, recipe.words, wordings)
    _begin(first, recipe, wordings, out, resume)
    judged: dict[str, Mapping[str, Sequence[str]]] = {
        "prompts": {prompt: [prompt] for prompt in wordings}, "learned": wordings
    }  # fmt: skip
    held_out = recipe.card.get("held_out_paraphrases", {})
    if any(held_out.values()):
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
        "words_steps": run.step,
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


def _begin(
    world: World, recipe: Recipe, wordings: Mapping[str, Sequence[str]], out: Path, resume: bool
) -> None:
    """Note what a run learns, or refuse to go on with one that learns something else."""
    note = out / _BEGUN
    assert recipe.words is not None
    weights = hashlib.sha256()
    for part, module in sorted(world.modules().items()):
        for name, tensor in module.state_dict().items():
            weights.update(f"{part}.{name}".encode())
            weights.update(tensor.float().contiguous().numpy().tobytes())
    texts = json.dumps(wordings, sort_keys=True).encode()
    now = {
        "world": weights.hexdigest()[:16],
        "wordings": hashlib.sha256(texts).hexdigest()[:16],
        "settings": {
            key: value for key, value in asdict(recipe.words).items() if key not in _MAY_CHANGE
        },
    }  # fmt: skip
    if any(out.glob("*.checkpoint.safetensors")):
        if not note.exists():
            raise RecipeError(f"{out} holds a training of another kind: choose another folder")
        if not resume:
            raise RecipeError(f"{out} holds a run already: resume it or choose another folder")
        with told_if_damaged(note, "delete the folder, and begin again"):
            begun = json.loads(note.read_text(encoding="utf-8"))
        if changed := [key for key in now if begun.get(key) != now[key]]:
            raise RecipeError(f"the run in {out} was begun with other {', '.join(changed)}")
    out.mkdir(parents=True, exist_ok=True)
    write_text(note, json.dumps(now))
