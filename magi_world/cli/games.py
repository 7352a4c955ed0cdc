"""The real games that the command line knows, who plays them for data, and where data lies."""

from collections.abc import Callable, Iterator, Sequence
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

GAMES = ("doom-take-cover",)


def game_maker(name: str) -> "Callable[[], Game]":
    """What makes the real game of that name.

    Raises:
        WorldNotFound: there is none.
    """
    if name not in GAMES:
        raise WorldNotFound(f"no real game {name!r}; there is {', '.join(GAMES)}")
    from magi_world.envs.doom import TakeCoverGame

    return TakeCoverGame


def game_prompts(name: str) -> list[str]:
    """Names of the game's actions, the no-op first."""
    return list(game_maker(name)().prompts)


def game_of(world: "World") -> str:
    """Name of the real game behind a world: its card's `game`, else the world's own name."""
    game = str(world.card.get("game", world.name))
    return game if game in GAMES else world.name


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
        metadata = sorted(path.rglob("data/metadata.json"))
        if not metadata:
            raise DatasetError(f"no Minari dataset in {path}: no data/metadata.json in or below it")
        found += [file.parent.parent for file in metadata]
    return found


def read_datasets(folders: Sequence[Path]) -> "Iterator[EpisodeData]":
    """All episodes of some datasets, one after the other; what is read is held only in turn."""
    from magi_world.training.episodes import read_episodes

    for folder in folders:
        yield from read_episodes(folder)


def play_episodes(
    make_game: "Callable[[], Game]", behaviours: "Sequence[Behaviour]", seeds: Iterator[int]
) -> "Iterator[EpisodeData]":
    """Play one real episode a seed, the behaviours in turn, without writing anything to disk."""
    game = make_game()
    try:
        for number, seed in enumerate(seeds):
            yield _play_episode(game, behaviours[number % len(behaviours)], seed)
    finally:
        game.close()


def _play_episode(game: "Game", behaviour: "Behaviour", seed: int) -> "EpisodeData":
    from magi_world.training.episodes import EpisodeData

    policy = behaviour.make(np.random.default_rng(seed))
    policy.reset(1, seed=seed)
    chunks, actions = [game.reset(seed)], []
    while not (chunks[-1].terminated or chunks[-1].truncated):
        actions.append(int(policy.act(chunks[-1].frames[None])[0]))
        chunks.append(game.step(actions[-1]))
    return EpisodeData(
        seed=seed,
        behaviour=behaviour.name,
        frames=np.stack([chunk.frames for chunk in chunks]),
        actions=np.array(actions, np.int64),
        rewards=np.array([chunk.reward for chunk in chunks[1:]], np.float32),
        valid_frames=np.array([chunk.valid_frames for chunk in chunks], np.int64),
        health=np.array([chunk.health for chunk in chunks], np.float32),
        terminated=chunks[-1].terminated,
        truncated=chunks[-1].truncated,
    )
