"""Train a world from recipe and data: VAE, then DiT and text encoder, then outcome heads."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from rich.console import Console

from magi_world.compiler import cpp_compiler
from magi_world.disk import check_folder, write_text
from magi_world.errors import CheckpointError, RecipeError
from magi_world.training.bank import make_bank
from magi_world.training.deepen import deepened, widened
from magi_world.training.dit_stage import DiTStage, initialise
from magi_world.training.encoding import encode_store, mirrored_path, scale_note
from magi_world.training.loop import Trainer
from magi_world.training.outcome_stage import OutcomeStage, generate_examples
from magi_world.training.prepare import prepare, tics_by_source
from magi_world.training.reading import Reading
from magi_world.training.recipe import DiTSettings, Recipe
from magi_world.training.store import Store, open_store, told_if_damaged
from magi_world.training.vae_stage import VAEStage
from magi_world.training.workers import Workers
from magi_world.world import World, load

STAGES = ("vae", "dit", "outcome")
_BEGUN = "begun.json"  # recipe and world that a run in a folder was begun with
_PARTS = {"vae": ("vae",), "dit": ("dit", "text"), "outcome": ("outcome",)}  # what each trains


def train_world(
    recipe: Recipe,
    data: Sequence[Path],
    out: Path,
    *,
    resume: bool = False,
    stages: Sequence[str] = STAGES,
    init: str | Path | None = None,
    init_parts: Sequence[str] | None = None,
    console: Console | None = None,
) -> World:
    """Run the stages in order; everything that they make lies in ``out``.

    Args:
        recipe: what to train, see :func:`magi_world.training.recipe.load_recipe`.
        data: Minari datasets and folders of videos, see `training/sources.py`.
        out: folder of checkpoints, TensorBoard logs, the training store and the world.
        resume: go on from the checkpoints in ``out``, begun with the same world.
        stages: which stages to run; earlier ones must have run in ``out``, or come from ``init``.
        init: a world (name or folder) whose weights the run begins with; its DiT may have fewer
            layers than the recipe's. The scale of its latents is kept, and stages before the first
            one run are not trained at all.
        init_parts: the parts of that world to begin with ("vae", "text", "dit", "outcome"), all by
            default; with only the VAE, a DiT of another shape learns on the same latents.
        console: where progress goes, standard error by default.

    Returns:
        The world, also saved in `out/world`.

    Raises:
        RecipeError: an unknown stage or part, parts of no world, or ``out`` is no place to write in
            or holds a run and ``resume`` is False, or one of another recipe or world.
        DatasetError: data that cannot be used, or a disk that is too small, before anything trains.
        WorldNotFound, CheckpointError: ``init`` is no world, or one of another configuration.
    """
    console = console or Console(stderr=True)
    unknown = sorted(set(stages) - set(STAGES))
    if unknown or not stages:
        raise RecipeError(f"unknown stages {unknown or '(none)'}; known are {list(STAGES)}")
    if recipe.config.text is None:
        raise RecipeError(f"{recipe.path} [config] has no text encoder: prompts could not act")
    if recipe.dit.compile and "dit" in stages and not cpp_compiler():
        raise RecipeError(
            "compile = true of [dit] needs a C++ compiler: g++, clang++ or the one that CXX names"
        )
    check_folder(out, RecipeError)
    if not resume and any(out.glob("*.checkpoint.safetensors")):
        raise RecipeError(f"{out} holds a run already: resume it or choose another folder")
    init, init_parts = _begun(recipe, out, resume, init, init_parts)
    kept_parts = _kept_parts(init, init_parts)
    if recipe.vae.decoder_only and "vae" not in kept_parts and not resume:
        raise RecipeError("decoder_only needs a VAE to begin with: name a world with --init")
    first = None if init is None else load(init)
    if first is not None:  # outcome heads depend on the data, too
        _copy_weights(_blank(recipe), first, kept_parts - {"outcome"})
    store = prepare(recipe, data, out, stages, console)
    begun = {"recipe": recipe.path.stem, "init": None if init is None else str(init)}
    settings = {stage: asdict(getattr(recipe, stage)) for stage in STAGES}
    _tell_changes(out, settings, console)
    write_text(
        out / _BEGUN, json.dumps(begun | {"parts": sorted(kept_parts), "settings": settings})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.vae.seed)
        world = World(_card(recipe, store))
    if first is not None:
        _begin_with(world, first, kept_parts)

    def train(stage: Any, settings: Any, workers: Workers | None = None) -> None:
        run = Trainer(stage, settings, out, resume=resume, console=console, workers=workers)
        earlier = STAGES.index(stage.name) < min(STAGES.index(name) for name in stages)
        if earlier and not run.step and kept_parts.issuperset(_PARTS[stage.name]):
            return
        if stage.name not in stages and not run.finished:
            raise RecipeError(f"stage {stage.name!r} is not finished in {out}: run it first")
        if not run.finished:
            new_latents = stage.name == "vae" and not recipe.vae.decoder_only
            if stage.name != "vae" or new_latents:
                _refuse_stale(stage.name, out)
            if new_latents:  # those there are of the VAE that it was
                scale_note(store).unlink(missing_ok=True)
                store.latents_path.unlink(missing_ok=True)
                mirrored_path(store).unlink(missing_ok=True)
        run.run()
        world.card["training"][f"{stage.name}_minutes"] = round(run.seconds / 60, 1)
        world.card["training"][f"{stage.name}_steps"] = run.step

    vae = recipe.vae
    weights = (vae.motion_weight, vae.unusual_weight, vae.rare_weight)
    train(
        VAEStage(world.vae, store, vae.batch_size, vae.kl_weight, *weights, vae.decoder_only), vae
    )
    kept = None if first is None else first.config.sampling.scale_factor
    world = _with_scale(world, encode_store(world, store, console, scale=kept))
    if first is not None:
        _begin_with(world, first, kept_parts - {"vae"})
    last = max(STAGES.index(stage) for stage in stages)
    if last >= STAGES.index("dit"):
        make = partial(_dit_stage, world, store.folder, recipe.dit)
        workers = Workers(make, recipe.dit.workers) if recipe.dit.workers > 1 else None
        train(make(), recipe.dit, workers)
        world.forget_captions()  # those of untrained weights
    if last >= STAGES.index("outcome") and world.outcome is not None:
        examples = partial(
            generate_examples, world, store, length=recipe.dit.sequence,
            chunks=recipe.outcome.chunks, held_out=False, seed=recipe.outcome.seed,
            most_kv_range=recipe.dit.most_kv_range, console=console,
        )  # fmt: skip
        rewards = recipe.card["reward_range"]
        train(OutcomeStage(world.outcome, examples, recipe.outcome, rewards), recipe.outcome)
    if recipe.dit.most_kv_range and last >= STAGES.index("dit"):
        world.card["training"]["most_kv_range"] = recipe.dit.most_kv_range
    world.bank = make_bank(world, store)
    for module in world.modules().values():
        module.eval()
    world.save(out / "world")
    return load(out / "world")


def _dit_stage(world: World, store: Path, settings: DiTSettings) -> DiTStage:
    """The stage as every process makes it for itself; the latents come from the disk."""
    return DiTStage(world, open_store(store), settings)


def _begun(
    recipe: Recipe,
    out: Path,
    resume: bool,
    init: str | Path | None,
    parts: Sequence[str] | None,
) -> tuple[str | Path | None, Sequence[str] | None]:
    """The world and its parts that a run begins with: where it goes on, those it was begun with."""
    note = out / _BEGUN
    if not resume or not note.exists():
        return init, parts
    with told_if_damaged(note, "delete it, and name what the run was begun with"):
        begun = json.loads(note.read_text())
        was = (begun["recipe"], begun["init"], begun["parts"])
    now = (
        recipe.path.stem,
        was[1] if init is None else str(init),
        was[2] if parts is None else sorted(parts),
    )
    for name, old, new in zip(("recipe", "--init", "parts"), was, now, strict=True):
        if old != new:
            raise RecipeError(f"the run in {out} was begun with {name} {old}, not {new}")
    return was[1], was[2] if was[1] is not None else None


def _tell_changes(out: Path, settings: dict[str, dict[str, Any]], console: Console) -> None:
    """Say which settings are not those that the run in the folder was last trained with."""
    note = out / _BEGUN
    if not any(out.glob("*.checkpoint.safetensors")) or not note.exists():
        return
    before = json.loads(note.read_text()).get("settings", {})
    changes = [
        f"{stage}.{name} {before[stage][name]} is {value} now"
        for stage, values in settings.items()
        for name, value in values.items()
        if name in before.get(stage, {}) and before[stage][name] != value
    ]
    if changes:
        console.print(f"resumed with other settings: {', '.join(changes)}", soft_wrap=True)


def _kept_parts(init: str | Path | None, parts: Sequence[str] | None) -> set[str]:
    """The parts of a world that a run begins with, checked."""
    known = {part for stage in STAGES for part in _PARTS[stage]}
    if parts is None:
        return known if init is not None else set()
    if init is None:
        raise RecipeError(f"parts {list(parts)} to begin with, but no world: name one")
    if unknown := sorted(set(parts) - known):
        raise RecipeError(f"unknown parts {unknown}; known are {sorted(known)}")
    return set(parts)


def _begin_with(world: World, first: World, parts: set[str]) -> None:
    """Copy the weights of some parts of an earlier world; and what its card says of the real game,
    if that is the same."""
    _copy_weights(world, first, parts)
    begun_with = {**first.card.get("training", {}), "real_tics": _more_tics(world, first)}
    world.card["training"]["begun_with"] = begun_with
    if first.card["game"] == world.card["game"]:
        for key in ("sweep_period", "sweeps"):
            if key in first.card:
                world.card[key] = first.card[key]


def _blank(recipe: Recipe) -> World:
    """A world of the recipe with any weights, to hold others against."""
    with torch.random.fork_rng(devices=[]):
        return World({**recipe.card, "fps": recipe.config.fps, "config": recipe.config.to_dict()})


def _copy_weights(world: World, first: World, parts: set[str]) -> None:
    modules, known = world.modules(), first.modules()
    for part in sorted(modules.keys() & parts):
        if part not in known:
            raise CheckpointError(f"{first.name!r} has no {part} to begin with")
        state = known[part].state_dict()
        try:
            if part == "dit" and len(first.dit.layers) < len(world.dit.layers):
                state = deepened(world.dit, state, len(first.dit.layers))
            if part == "dit" and world.dit.config.previous_chunk:
                state = widened(world.dit, state)
            modules[part].load_state_dict(state)
        except (RuntimeError, ValueError) as error:
            # torch names every tensor that does not fit: the first few say enough
            words = shorten(" ".join(str(error).split()), 240, placeholder=" …")
            raise CheckpointError(f"{first.name!r} cannot be begun with: {words}") from None


def _more_tics(world: World, first: World) -> int:
    """Tics of the real game that an earlier world has used beyond the data of this one."""
    data = first.card.get("data", {})
    earlier = first.card.get("training", {}).get("begun_with", {}).get("real_tics", 0)
    again = set(world.card["data"]["datasets"])
    shared = sum(int(n) for name, n in data.get("datasets", {}).items() if name in again)
    return int(data.get("real_tics", 0)) - shared + int(earlier)


def _refuse_stale(stage: str, out: Path) -> None:
    """A stage that learns on would leave the later ones trained on what it was."""
    later = STAGES[STAGES.index(stage) + 1 :]
    stale = [path for name in later if (path := out / f"{name}.checkpoint.safetensors").exists()]
    if stale:
        raise RecipeError(
            f"stage {stage!r} is not finished, but later stages were trained on it: remove "
            f"{', '.join(map(str, stale))} or choose another folder"
        )


def _card(recipe: Recipe, store: Store) -> dict[str, Any]:
    config = recipe.config
    outcome = config.outcome
    if outcome is not None and np.isnan(store.health).all():
        outcome = replace(outcome, signals=())  # the data cannot teach them
    return {
        **recipe.card,
        "fps": config.fps,
        "config": replace(config, outcome=outcome).to_dict(),
        "data": {**store.summary(), "datasets": tics_by_source(store)},
        "training": {"recipe": recipe.path.stem},
        **({} if recipe.data == Reading() else {"reading": asdict(recipe.data)}),
    }


def _with_scale(world: World, scale: float) -> World:
    """The same world with its latents' scale; built anew because a configuration is frozen."""
    world.card["config"]["sampling"]["scale_factor"] = scale
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        scaled = World(world.card)
        initialise(scaled.dit)
    for part, module in scaled.modules().items():
        if part == "vae":
            module.load_state_dict(world.vae.state_dict())
    return scaled
