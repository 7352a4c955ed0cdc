"""The real games that the command line knows, who plays them for data, and where data lies."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from magi_world.errors import AgentError

if TYPE_CHECKING:
    from magi_world.agents import Agent
    from magi_world.envs.pong import PongDuelGame
    from magi_world.training.collect import Behaviour, Game, Policy
    from magi_world.training.episodes import EpisodeData
    from magi_world.world import World


def game_maker(name: str) -> "Callable[[], Game]":
    """What makes the real game of that name, or of an adapter (`envs/games.py` says how named).

    Raises:
        WorldNotFound: there is none.
        ConfigError: an adapter that cannot be used.
    """
    from magi_world.envs.games import find_game

    return find_game(name)


def real_game(world: "World", named: str | None = None) -> "Callable[[], Game]":
    """What makes the real game of a world: the one named, else the one that its card names.

    It is made once, so that what is wrong with it is said now and not after ten minutes.

    Raises:
        WorldNotFound: there is none.
        ConfigError: an adapter that cannot be used, or a game whose chunks are not the world's.
        MissingPackage: the game's package is absent.
    """
    from magi_world.envs.games import check_fits, world_game

    make_game = world_game(world.card, named)
    game = make_game()
    try:
        check_fits(game, world.card, world.config)
    finally:
        game.close()
    return make_game


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


def mixture(
    game: "Game", agent: "Agent | None" = None, agent_share: float = 1.0
) -> "list[Behaviour]":
    """Who plays a game for data, in equal shares: random players, and an agent if there is one,
    who plays `agent_share` times as many chunks as each of the others.

    In Doom sticky random players, blind sweeps and players who mostly do nothing: a world that has
    seldom seen what comes of that dreams that it is safe. In Pong see `duel_mixture`. In one's own
    game sticky random players, and more of them by its `action_weights` if it has those. How sticky
    and how wide a sweep is, and to which side it sets out, is drawn for every episode: a world
    learns most from seeing the same situation left in many ways.
    """
    from magi_world.agents.random_agent import Sticky, Sweep
    from magi_world.envs.games import GAMES
    from magi_world.envs.pong import PongDuelGame
    from magi_world.training.collect import Behaviour

    if isinstance(game, PongDuelGame):
        if agent is not None:
            raise AgentError(f"{game.name} has players, and one agent is not all of them")
        return duel_mixture(game)
    weights: Any = getattr(game, "action_weights", None)
    num_actions = len(game.prompts)

    def sticky(rng: np.random.Generator) -> Sticky:
        return Sticky(num_actions, p=float(rng.uniform(0.3, 0.9)))

    def sweep(rng: np.random.Generator) -> Sweep:
        left, right = rng.permutation([1, 2]).tolist()
        return Sweep(int(rng.integers(8, 49)), left=left, right=right)

    def still(rng: np.random.Generator) -> Sticky:
        shares = [10.0, *[1.0] * (num_actions - 1)]
        return Sticky(num_actions, p=float(rng.uniform(0.3, 0.9)), weights=shares)

    def weighted(rng: np.random.Generator) -> Sticky:
        shares = [float(weights.get(prompt, 1.0)) for prompt in game.prompts]
        return Sticky(num_actions, p=float(rng.uniform(0.0, 0.9)), weights=shares)

    behaviours = [Behaviour("sticky", 1.0, sticky)]
    if game.name in GAMES:
        behaviours += [Behaviour("sweep", 1.0, sweep), Behaviour("still", 1.0, still)]
    if weights is not None:
        behaviours.append(Behaviour("weighted", 1.0, weighted))
    if agent is not None:
        behaviours.append(Behaviour("agent", agent_share, lambda rng: agent))
    return behaviours


def duel_mixture(game: "PongDuelGame") -> "list[Behaviour]":
    """Who plays Pong for data: two who follow the ball and seldom err, in half of the episodes; in
    the others, in equal shares, two sticky random players, two who err more, and one of each, on a
    side drawn for every episode.

    How sticky they are, how often and how far they err is drawn for every player and episode. Only
    rallies show the fast balls that come off the ends of a paddle, and the other players return
    but a quarter of all balls.
    """
    from magi_world.agents.random_agent import Sticky
    from magi_world.agents.tracker import Together, Tracker
    from magi_world.training.collect import Behaviour

    num_actions = len(game.player_prompts)

    def sticky(rng: np.random.Generator, player: str) -> "Policy":
        return Sticky(num_actions, p=float(rng.uniform(0.2, 0.9)))

    def tracker(rng: np.random.Generator, player: str, most_slips: float = 0.5) -> "Policy":
        return Tracker(
            player,
            game.objects,
            slip=float(rng.uniform(0.0, most_slips)),
            reach=float(rng.uniform(3.0, 5.0)),
            aim=float(rng.uniform(-3.0, 3.0)),
        )

    def steady(rng: np.random.Generator, player: str) -> "Policy":
        return tracker(rng, player, most_slips=0.1)

    def of(*kinds: "Callable[[np.random.Generator, str], Policy]") -> "Any":
        def make(rng: np.random.Generator) -> Together:
            order = rng.permutation(len(kinds))
            pairs = zip(order, game.players, strict=True)
            return Together([kinds[i](rng, player) for i, player in pairs], num_actions)

        return make

    return [
        Behaviour("sticky", 1.0, of(sticky, sticky)),
        Behaviour("trackers", 1.0, of(tracker, tracker)),
        Behaviour("tracker and sticky", 1.0, of(tracker, sticky)),
        Behaviour("steady trackers", 3.0, of(steady, steady)),
    ]


def dataset_folders(paths: Sequence[Path]) -> list[Path]:
    """Minari datasets and folders of videos: each path itself, or all that lie below it, by name.

    Raises:
        DatasetError: a folder holds none.
    """
    from magi_world.training.sources import find_sources

    return find_sources(paths)


def read_datasets(folders: Sequence[Path], world: "World") -> "Iterator[EpisodeData]":
    """All episodes of some data, read as the world's was; what is read is held only in turn."""
    from magi_world.training.reading import Reading
    from magi_world.training.sources import check_sources, read_source

    reading = Reading(**world.card.get("reading", {}))
    check_sources(folders, world.card, world.config, reading)
    for folder in folders:
        yield from read_source(folder, world.card, world.config, reading)


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
