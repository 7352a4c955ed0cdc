"""The real games that the command line knows, who plays them for data, and where data lies."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from magi_world.errors import DatasetError, WorldNotFound

if TYPE_CHECKING:
    from magi_world.agents import Agent
    from magi_world.training.collect import Behaviour, Game
    from magi_world.training.episodes import EpisodeData
    from magi_world.world import World


def game_maker(name: str) -> "Callable[[], Game]":
    """What makes the real game behind the world of that name.

    Raises:
        WorldNotFound: there is none.
    """
    from magi_world.envs.real_env import GAMES

    if name not in GAMES:
        raise WorldNotFound(f"no real game {name!r}; there is {', '.join(sorted(GAMES))}")
    return GAMES[name]


def game_prompts(name: str) -> list[str]:
    """Names of the game's actions, the no-op first."""
    return list(game_maker(name)().prompts)


class SeesLatents:
    """Lets an agent that reads latents play where frames are shown: the world encodes them."""

    observations = "frames"

    def __init__(self, agent: "Agent", world: "World") -> None:
        self._agent = agent
        self._world = world

    def reset(self, n: int, seed: int | None = None) -> None:
        self._agent.reset(n, seed=seed)

    def act(self, observations: Any) -> npt.NDArray[np.int64]:
        return self._agent.act(self._world.encode(np.asarray(observations)))


def mixture(num_actions: int, agent: "Agent | None" = None) -> "list[Behaviour]":
    """Who plays for data: sticky random, blind sweeps, and an agent if there is one; equal shares.

    How sticky and how wide a sweep is, and to which side it sets out, is drawn for every episode:
    a world learns most from seeing the same situation left in many ways.
    """
    from magi_world.agents.random_agent import Sticky, Sweep
    from magi_world.training.collect import Behaviour

    def sticky(rng: np.random.Generator) -> Sticky:
        return Sticky(num_actions, p=float(rng.uniform(0.3, 0.9)))

    def sweep(rng: np.random.Generator) -> Sweep:
        left, right = rng.permutation([1, 2]).tolist()
        return Sweep(int(rng.integers(8, 49)), left=left, right=right)

    behaviours = [Behaviour("sticky", 1.0, sticky), Behaviour("sweep", 1.0, sweep)]
    if agent is not None:
        behaviours.append(Behaviour("agent", 1.0, lambda rng: agent))
    return behaviours


def dataset_folders(paths: Sequence[Path]) -> list[Path]:
    """Minari datasets in the folders given: each itself, or all that lie below it, by name.

    Raises:
        DatasetError: a folder holds none.
    """
    found = []
    for path in paths:
        folders = sorted(file.parent.parent for file in path.rglob("data/metadata.json"))
        # a dot begins the name under which a dataset is still being written
        whole = [f for f in folders if not any(p[0] == "." for p in f.relative_to(path).parts)]
        if not whole:
            raise DatasetError(f"no Minari dataset in {path}: no data/metadata.json in or below it")
        found += whole
    return found


def read_datasets(folders: Sequence[Path]) -> "Iterator[EpisodeData]":
    """All episodes of some datasets, one after the other; what is read is held only in turn."""
    from magi_world.training.episodes import read_episodes

    for folder in folders:
        yield from read_episodes(folder)


def play_episodes(
    make_game: "Callable[[], Game]", behaviours: "Sequence[Behaviour]", seeds: Iterable[int]
) -> "Iterator[EpisodeData]":
    """Play one real episode a seed, the behaviours in turn, without writing anything to disk."""
    from magi_world.training.collect import play_episode

    game = make_game()
    try:
        for number, seed in enumerate(seeds):
            yield play_episode(game, behaviours[number % len(behaviours)], seed)
    finally:
        game.close()
