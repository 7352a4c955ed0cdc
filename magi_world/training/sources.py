"""Where training data lies: Minari datasets and folders of videos, checked before they are read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from magi_world.config import WorldConfig
from magi_world.errors import DatasetError
from magi_world.players import chunk_prompts
from magi_world.training.episodes import EpisodeData, Facts, dataset_facts, read_episodes
from magi_world.training.pictures import shrink
from magi_world.training.reading import Reading
from magi_world.training.videos import TABLE, read_videos, video_facts


def find_sources(paths: Sequence[Path]) -> list[Path]:
    """Minari datasets and folders of videos: each path itself, or all that lie below it, by name.

    Raises:
        DatasetError: a folder holds none.
    """
    found = []
    for path in paths:
        folders = [file.parent.parent for file in path.rglob("data/metadata.json")]
        folders += [file.parent for file in path.rglob(TABLE)]
        # a dot begins the name under which a dataset is still being written
        whole = [f for f in folders if not any(p[0] == "." for p in f.relative_to(path).parts)]
        if not whole:
            raise DatasetError(
                f"no Minari dataset in {path}: no data/metadata.json in or below it, and no folder "
                f"of videos with a {TABLE}"
            )
        found += sorted(whole)
    return found


def check_sources(
    paths: Sequence[Path], card: Mapping[str, Any], config: WorldConfig, reading: Reading
) -> list[Facts]:
    """Look at all data before any of it is read; the facts of each source.

    Raises:
        DatasetError: two sources of one name; one that cannot be used, has other actions than the
            card's prompts or frames of another size than the recipe's, or sources whose frames
            differ in size.
    """
    facts = [_facts(path, card, config, reading) for path in paths]
    prompts = chunk_prompts(card)
    size = (config.height, config.width)
    for path, known in zip(paths, facts, strict=True):
        if known.size != facts[0].size:
            raise DatasetError(
                f"frames of different sizes (height, width): {paths[0]} has {facts[0].size}, "
                f"{path} {known.size}"
            )
        if known.size != size and not reading.resize:
            raise DatasetError(
                f"{path} has frames of {known.size} (height, width), the recipe of {size}: "
                "change the recipe, or let it shrink them with resize = true under [data]"
            )
        if known.chunk_frames not in (None, config.chunk_frames):
            raise DatasetError(
                f"{path} has chunks of {known.chunk_frames} frames, the recipe of "
                f"{config.chunk_frames}"
            )
        if known.actions != len(prompts) or known.prompts not in (None, prompts):
            has = known.prompts or f"{known.actions} actions"
            raise DatasetError(f"{path} has {has}, the recipe's card the prompts {prompts}")
    names = [path.name for path in paths]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise DatasetError(
            f"two sources are called {again[0]!r}, the name by which their tics are counted: "
            "collect with --name, or rename a folder"
        )
    return facts


def read_source(
    path: Path, card: Mapping[str, Any], config: WorldConfig, reading: Reading
) -> Iterator[EpisodeData]:
    """Go through the episodes of one source; frames come in the size of the configuration."""
    if (path / TABLE).exists():
        episodes = read_videos(path, card, config, reading)
    else:
        episodes = read_episodes(path, reading=reading, chunk_frames=config.chunk_frames)
    for episode in episodes:
        if reading.resize:
            # chunk by chunk, because averages are taken in double precision
            frames = [shrink(chunk, config.height, config.width) for chunk in episode.frames]
            episode = replace(episode, frames=np.stack(frames))
        yield episode


def _facts(path: Path, card: Mapping[str, Any], config: WorldConfig, reading: Reading) -> Facts:
    if (path / TABLE).exists():
        return video_facts(path, card, config.fps, reading)
    return dataset_facts(path, reading=reading)
