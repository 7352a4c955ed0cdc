"""Everything that is done before a world trains: data is checked, read and found to be enough."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from magi_world.config import WorldConfig
from magi_world.disk import check_disk, write_text
from magi_world.errors import DatasetError, RecipeError
from magi_world.players import chunk_prompts
from magi_world.training.collect import is_held_out
from magi_world.training.outcome_stage import sequence_strata, too_short
from magi_world.training.reading import Reading
from magi_world.training.recipe import Recipe
from magi_world.training.sources import check_sources, read_source
from magi_world.training.store import Store, build_store, open_store, told_if_damaged
from magi_world.world import World

_CHECKPOINT_BYTES = 34  # a parameter: weights, EMA, two moments, twice while one is replaced; world


def prepare(
    recipe: Recipe, data: Sequence[Path], out: Path, stages: Sequence[str], console: Console
) -> Store:
    """Read all data into `out/store`, or open what an earlier run has read there.

    Raises:
        RecipeError: the store is there already and was read from other data, or for another recipe.
        DatasetError: data that cannot be used, too little of it, or too small a disk.
    """

    def needed(chunks: int) -> int:
        return _disk_needed(recipe, chunks)

    store = read_store(recipe.card, recipe.config, recipe.data, data, out, console, needed)
    _check_recipe(store, recipe)
    for part in (True, False):
        if not store.episodes(held_out=part).size:
            which = "the held-out part" if part else "training"
            raise DatasetError(
                f"no episode is in {which}: there are {len(store.offsets) - 1}, every twentieth "
                "is held out; collect more episodes"
            )
    _check_lengths(store, recipe, stages)
    return store


def read_store(
    card: Mapping[str, Any],
    config: WorldConfig,
    reading: Reading,
    data: Sequence[Path],
    out: Path,
    console: Console,
    needed: Callable[[int], int],
) -> Store:
    """Read all data into `out/store`, or open it where it was read before.

    `needed` says how many bytes of disk so many chunks take.

    Raises:
        RecipeError: the store was read from other data.
        DatasetError: data that cannot be used, or too small a disk.
    """
    folder = out / "store"
    note = folder / "sources.json"
    facts = check_sources(data, card, config, reading)
    sources: list[Any] = [[path.name, one.chunks] for path, one in zip(data, facts, strict=True)]
    if sources and reading != Reading():
        sources.append(asdict(reading))
    total = sum(one.chunks for one in facts)
    if (folder / "table.npz").exists():
        known = _sources(note) or sources
        if not sources or known == sources:
            store = open_store(folder)
            left = 0 if store.latents_path.exists() else store_bytes(config, 0, len(store.action))
            check_disk(out, needed(0) + left, DatasetError)
            return store
        if any(out.glob("*.checkpoint.safetensors")):  # else nothing was learned from it yet
            raise RecipeError(
                f"{folder} was read from other data, {known}, not from {sources}: choose another "
                "folder, or resume without data"
            )
    if not sources:
        raise DatasetError(f"{folder} holds no data that was read before: name some")
    console.print(check_disk(out, needed(total), DatasetError), soft_wrap=True)
    console.print(f"reading {total} chunks from {', '.join(map(str, data))}")
    episodes = (episode for path in data for episode in read_source(path, card, config, reading))
    store = build_store(episodes, folder, is_held_out, total)
    write_text(note, json.dumps(sources))
    return store


def _sources(note: Path) -> list[Any]:
    """What a store was read from, as `read_store` notes it; empty where that is not told."""
    if not note.exists():
        return []
    with told_if_damaged(note, f"delete the folder {note.parent}, and the data is read again"):
        sources: list[Any] = json.loads(note.read_text())
    return sources


def tics_by_source(store: Store) -> dict[str, int]:
    """Pictures that the game drew for each dataset of a store; empty where that is not told."""
    sources = [
        entry for entry in _sources(store.folder / "sources.json") if isinstance(entry, list)
    ]
    bounds = np.cumsum([0, *(chunks for _, chunks in sources)])
    if bounds[-1] != len(store.valid):  # data of other people, of which not every chunk was used
        return {}
    tics = np.add.reduceat(store.valid, bounds[:-1])
    return {name: int(count) for (name, _), count in zip(sources, tics, strict=True)}


def _disk_needed(recipe: Recipe, chunks: int) -> int:
    """Bytes of the store and of all checkpoints, an upper estimate."""
    config = recipe.config
    with torch.random.fork_rng(devices=[]):
        world = World({**recipe.card, "fps": config.fps, "config": config.to_dict()})
    parameters = sum(p.numel() for module in world.modules().values() for p in module.parameters())
    return store_bytes(config, chunks) + int(1.1 * parameters * _CHECKPOINT_BYTES)


def store_bytes(config: WorldConfig, chunks: int, encoded: int | None = None) -> int:
    """Bytes of so many chunks and of the latents of so many, by default all; an upper estimate."""
    frames = config.chunk_frames * config.height * config.width * 3
    latents = 2 * int(np.prod(config.latent_shape))
    return int(1.1 * (chunks * frames + (chunks if encoded is None else encoded) * latents))


def _check_recipe(store: Store, recipe: Recipe) -> None:
    """Refuse to go on with a store that was read for another recipe, where that can be seen."""
    prompts, frames = chunk_prompts(recipe.card), recipe.config.frames_shape
    if int(store.action.max()) >= len(prompts):
        raise RecipeError(
            f"{store.folder} has data of {int(store.action.max()) + 1} actions or more, the recipe "
            f"the prompts {prompts}"
        )
    if store.frames.shape[1:] != frames:
        raise RecipeError(
            f"{store.folder} has chunks of {list(store.frames.shape[1:])}, the recipe of "
            f"{list(frames)}"
        )


def _check_lengths(store: Store, recipe: Recipe, stages: Sequence[str]) -> None:
    """Refuse data whose episodes are all shorter than the stretches that will be learned from."""
    length = recipe.dit.sequence
    chunks = np.diff(store.offsets)
    if {"dit", "outcome"} & set(stages):
        for part in (False, True):
            longest = int(chunks[store.episodes(held_out=part)].max())
            if longest < length:
                raise DatasetError(
                    f"no episode has {length} chunks, the longest {'held-out ' * part}one has "
                    f"{longest}: shorten `sequence` in the recipe"
                )
    if "outcome" in stages and recipe.config.outcome is not None:
        if not sequence_strata(store, length, held_out=False)[1]:
            raise DatasetError(too_short(length))
