"""Real games between agents, and what they are scored by: points won minus points lost.

Nothing here is learned from. Both players of a game see the same chunks, each in the form that it
reads, through the same world.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.agents import Agent
from magi_world.agents.evaluation import BLIND, observe
from magi_world.agents.selfplay_agent import SelfPlayAgent
from magi_world.errors import AgentError
from magi_world.evaluation.metrics import mean_and_std
from magi_world.players import join_actions, players_of
from magi_world.training.collect import Game
from magi_world.world import World

Margins = npt.NDArray[np.float64]
Tick = Callable[[int], None]


def begin(agent: Agent, n: int, seed: int, player: str) -> None:
    """Begin n episodes of an agent as one player; the baselines need not be told which."""
    if isinstance(agent, SelfPlayAgent):
        agent.reset(n, seed=seed, player=player)
    else:
        agent.reset(n, seed=seed)


def form(agent: Agent) -> str:
    """What an agent reads of a chunk; nothing, if it is blind."""
    return "nothing" if isinstance(agent, BLIND) else agent.observations


def play_duels(
    make_game: Callable[[], Game],
    world: World,
    sides: Sequence[Agent],
    *,
    games: int,
    first_seed: int,
    width: int = 10,
    players: Sequence[str] | None = None,
    tick: Tick = lambda finished: None,
) -> Margins:
    """Play games to their end and return what each player won minus what it lost, `[games, K]`.

    Game i is played with the seed `first_seed + i`; its agents draw from seeds of their own.

    Args:
        make_game: makes the game; its actions are those of `sides`, joined.
        world: what the agents see it through.
        sides: one agent a player that acts.
        games: how many.
        first_seed: see above.
        width: games played side by side, so that encoding is batched.
        players: who the agents are; the world's players by default.
        tick: told how many games have just ended.

    Raises:
        AgentError: not one agent a player.
    """
    names = list(players or players_of(world.card))
    if len(sides) != len(names):
        raise AgentError(f"{len(sides)} agents for the players {names}: one each is needed")
    if len({id(agent) for agent in sides}) < len(sides):
        raise AgentError("an agent cannot be two players at once: load it twice")
    readers = {form(agent): agent for agent in sides}  # chunks are encoded once for both
    num_actions = len(world.card["prompts"])
    margins: list[Any] = [None] * games
    width = min(width, games)
    running = [make_game() for _ in range(width)]
    try:
        for start in range(0, games, width):
            rows = min(width, games - start)
            first = [running[row].reset(first_seed + start + row) for row in range(rows)]
            frames = np.stack([chunk.frames for chunk in first])
            won = np.zeros((rows, np.size(first[0].reward)))
            for number, (agent, name) in enumerate(zip(sides, names, strict=True)):
                begin(agent, rows, first_seed + start + 1_000_000 * number, name)
            live = list(range(rows))
            seen = {name: observe(world, agent, frames) for name, agent in readers.items()}
            while live:
                own = [agent.act(seen[form(agent)]) for agent in sides]
                joined = join_actions(own, num_actions)
                chunks = {row: running[row].step(int(joined[row])) for row in live}
                new = np.stack([chunk.frames for chunk in chunks.values()])
                for name, agent in readers.items():
                    seen[name][live] = observe(world, agent, new)
                before = len(live)
                for row, chunk in chunks.items():
                    won[row] += chunk.reward
                    if chunk.terminated or chunk.truncated:
                        live.remove(row)
                tick(before - len(live))
            margins[start : start + rows] = list(won)
    finally:
        for game in running:
            game.close()
    return np.stack(margins)


def score(margins: Margins) -> dict[str, Any]:
    """Mean and deviation of an agent's margins `[n]`, the 95 % interval of the mean, its wins."""
    numbers = mean_and_std(margins)
    half = 1.96 * numbers["std"] / len(margins) ** 0.5
    interval = {"low": numbers["mean"] - half, "high": numbers["mean"] + half}
    return {**numbers, **interval, "wins": float((margins > 0).mean())}


def match(
    make_game: Callable[[], Game],
    world: World,
    pair: Callable[[], tuple[Agent, Agent]],
    *,
    games: int,
    first_seed: int,
    width: int = 10,
    tick: Tick = lambda finished: None,
) -> dict[str, Any]:
    """Score one agent against another, half of the games on either side of the field.

    Args:
        make_game: makes the real game of two players.
        world: what both see it through.
        pair: gives the agent and its opponent.
        games, first_seed, width, tick: as in `play_duels`.

    Returns:
        The agent's `score` over all games, and `sides`: its mean margin as each player.
    """
    players = players_of(world.card)
    agent, opponent = pair()
    parts: dict[str, Margins] = {}
    half = [games - games // 2, games // 2]
    sides: list[Agent]
    for place, (player, count) in enumerate(zip(players, half, strict=True)):
        if count:
            sides = [agent, opponent] if place == 0 else [opponent, agent]
            won = play_duels(
                make_game, world, sides, games=count, first_seed=first_seed + place * half[0],
                width=width, tick=tick,
            )  # fmt: skip
            parts[player] = won[:, place]
    sides_mean: Mapping[str, float] = {name: float(won.mean()) for name, won in parts.items()}
    return {**score(np.concatenate(list(parts.values()))), "sides": sides_mean}
