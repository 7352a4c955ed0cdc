"""Plays agents in the dream and in the real game and makes the rows of the table.

The return of an episode is in tics: those survived in reality, the sum of the world's rewards in
the dream; the reset chunk counts in neither. Every episode has a seed of its own and is played to
its end, so that short episodes are not counted more often than long ones.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from magi_world.agents import BASELINES, Agent, has_agent, load
from magi_world.agents.random_agent import NoOp, Sticky, Sweep
from magi_world.errors import AgentError
from magi_world.evaluation.metrics import difference_interval, mean_and_std
from magi_world.training.collect import Game
from magi_world.world import World

Returns = npt.NDArray[np.float64]
Row = dict[str, Any]

BLIND = (NoOp, Sticky, Sweep)
"""agents that only count the rows they are given"""
FIRST_SEEDS = {"final": 10_000, "validation": 20_000}
"""Episode i is played with seed first + i. Nothing is ever chosen by a score on the final seeds."""


def play_dream(
    world: World,
    agent: Agent,
    *,
    episodes: int,
    first_seed: int,
    batch: int = 32,
    tick: Callable[[int], None] = lambda finished: None,
) -> Returns:
    """Play episodes in the world, `batch` at a time, from the opening to the end or the horizon.

    Slot and agent row of episode i are seeded with `first_seed + i`. Every forward has the same
    width: a short last batch is filled with episodes that are not counted. `tick` is told how many
    episodes have just ended. Returns float64 `[episodes]`, in tics.
    """
    width = min(batch, episodes)
    returns = np.zeros(-(-episodes // width) * width)
    prompts: list[str] = world.card["prompts"]
    rollout = world.rollout(width)
    for start in range(0, episodes, width):
        counted = torch.arange(start, start + width) < episodes
        live = counted.clone()
        chunk = rollout.reset(seeds=range(first_seed + start, first_seed + start + width))
        agent.reset(width, seed=first_seed + start)
        while live.any():
            actions = agent.act(chunk.frames if agent.observations == "frames" else chunk.latents)
            chunk = rollout.step([prompts[action] for action in actions])
            returns[start : start + width] += (chunk.reward.cpu() * live).numpy()
            over = chunk.terminated.cpu() | (rollout.chunk_index >= world.card["horizon"])
            tick(int((live & over).sum()))
            live &= ~over
    return returns[:episodes]


def play_real(
    make_game: Callable[[], Game],
    world: World,
    agent: Agent,
    *,
    episodes: int,
    first_seed: int,
    games: int = 10,
    tick: Callable[[int], None] = lambda finished: None,
) -> Returns:
    """Play episodes of the real game, `games` of them in lock-step so that encoding is batched.

    Game and agent row of episode i are seeded with `first_seed + i`. An agent that reads latents
    gets each chunk as the world encodes it; for one that reads nothing, nothing is encoded. `tick`
    is told how many episodes have just ended. Returns float64 `[episodes]`, tics survived.

    Raises:
        AgentError: the game's prompts are not those of the world.
    """
    returns = np.zeros(episodes)
    width = min(games, episodes)
    running = [make_game() for _ in range(width)]
    try:
        if running[0].prompts != world.card["prompts"]:
            raise AgentError(
                f"the game has the prompts {running[0].prompts}, "
                f"the world {world.name!r} {world.card['prompts']}"
            )
        for start in range(0, episodes, width):
            rows = min(width, episodes - start)
            seeds = [first_seed + start + row for row in range(rows)]
            first = [game.reset(seed) for game, seed in zip(running, seeds, strict=False)]
            observations = _observe(world, agent, np.stack([chunk.frames for chunk in first]))
            agent.reset(rows, seed=first_seed + start)
            live = list(range(rows))
            while live:
                actions = agent.act(observations)
                chunks = {row: running[row].step(int(actions[row])) for row in live}
                new = np.stack([chunk.frames for chunk in chunks.values()])
                observations[live] = _observe(world, agent, new)
                for row, chunk in chunks.items():
                    returns[start + row] += chunk.reward
                    if chunk.terminated or chunk.truncated:
                        live.remove(row)
                tick(len(chunks) - len(live))
    finally:
        for game in running:
            game.close()
    return returns


def _observe(world: World, agent: Agent, frames: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Turn real chunks uint8 `[n, F, H, W, 3]` into what the agent reads, one row each."""
    if isinstance(agent, BLIND):
        return np.zeros((len(frames), 1))
    if agent.observations == "frames":
        return frames
    return world.encode(frames).cpu().numpy()


def load_agents(world: World, names: Sequence[str] | None = None) -> dict[str, Agent]:
    """Load agents by name (see `load`); None means the baselines and the world's own, if any."""
    if names is None:
        names = [*BASELINES, *([world.name] if has_agent(world) else [])]
    return {name: load(name, world=world) for name in names}


def evaluate_agents(
    world: World,
    agents: Mapping[str, Agent],
    *,
    where: Sequence[str] = ("dream", "real"),
    episodes: int = 100,
    seeds: str = "final",
    make_game: Callable[[], Game] | None = None,
    batch: int = 32,
    games: int = 10,
    show: bool = True,
) -> list[Row]:
    """Play each agent in the dream, in the real game or in both; one row for each pair.

    A row holds `agent`, `where`, `mean`, `std` (n - 1), `episodes`, `mean_low` and `mean_high`
    (95 % bootstrap interval of the mean), `policy` ("blind", "greedy", "sampled"), `seeds`,
    `first_seed`, `real_tics` (tics of the real game that the row cost, reset chunks included),
    `returns` (one an episode) and, beside an agent called "random", `above_random` with
    `above_random_low` and `above_random_high`: the difference of the means and its 95 % bootstrap
    interval. `make_game` makes the real game; `show` draws a progress bar on stderr.

    Raises:
        AgentError: `where` or `seeds` is not one of those known, there are no episodes to play, or
            the real game is asked for without `make_game`.
    """
    if not set(where) <= {"dream", "real"}:
        raise AgentError(f'where {list(where)} is not made of "dream" and "real"')
    if seeds not in FIRST_SEEDS:
        raise AgentError(f"seeds {seeds!r} is not one of {list(FIRST_SEEDS)}")
    for name, number in (("episodes", episodes), ("batch", batch), ("games", games)):
        if number < 1:
            raise AgentError(f"{name} {number} is below 1")
    first_seed = FIRST_SEEDS[seeds]
    rows: list[Row] = []
    with Progress(console=Console(stderr=True), disable=not show) as bar:
        for place in where:
            for name, agent in agents.items():
                task = bar.add_task(f"{name}, {place}", total=episodes)
                tick = partial(bar.advance, task)
                if place == "dream":
                    returns = play_dream(
                        world, agent, episodes=episodes, first_seed=first_seed, batch=batch,
                        tick=tick,
                    )  # fmt: skip
                elif make_game is not None:
                    returns = play_real(
                        make_game, world, agent, episodes=episodes, first_seed=first_seed,
                        games=games, tick=tick,
                    )  # fmt: skip
                else:
                    raise AgentError(f"the real game of {world.name!r} was not given: make_game")
                reset_tics = world.config.chunk_frames * episodes
                rows.append(
                    make_row(name, place, returns)
                    | {
                        "policy": describe_policy(agent),
                        "seeds": seeds,
                        "first_seed": first_seed,
                        "real_tics": int(returns.sum()) + reset_tics if place == "real" else 0,
                    }
                )
    return compare_with_random(rows)


def describe_policy(agent: Agent) -> str:
    """How an agent chooses: "blind", or "greedy" or "sampled" as it says itself."""
    return "blind" if isinstance(agent, BLIND) else getattr(agent, "policy", "not told")


def make_row(agent: str, where: str, returns: Returns) -> Row:
    """The numbers of one agent in one place, from the returns of its episodes `[n]`."""
    numbers = mean_and_std(returns)
    low, high = difference_interval(returns, [0.0])
    return {
        "agent": agent,
        "where": where,
        "mean": numbers["mean"],
        "std": numbers["std"],
        "episodes": numbers["n"],
        "mean_low": low,
        "mean_high": high,
        "returns": returns.tolist(),
    }


def compare_with_random(rows: Sequence[Row]) -> list[Row]:
    """Add to every row how far its mean lies above that of "random" in the same place."""
    random = {row["where"]: row for row in rows if row["agent"] == "random"}
    compared = []
    for row in rows:
        other = random.get(row["where"])
        if other is not None and other is not row:
            low, high = difference_interval(row["returns"], other["returns"])
            row = row | {
                "above_random": row["mean"] - other["mean"],
                "above_random_low": low,
                "above_random_high": high,
            }
        compared.append(row)
    return compared


def format_table(rows: Sequence[Row]) -> Table:
    """The rows as one table for people, narrow enough for 80 columns."""
    seeds = " and ".join(sorted({f"{row['seeds']} ({row['first_seed']} + i)" for row in rows}))
    table = Table(
        box=box.SIMPLE,
        title="Return in tics",
        caption=f"seeds: {seeds}; in brackets the 95 % bootstrap interval",
    )
    for name in ("agent", "policy", "where"):
        table.add_column(name, overflow="fold")
    for name in ("mean ± std", "n", "above random", "real tics"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        above = ""
        if "above_random" in row:
            low, high = row["above_random_low"], row["above_random_high"]
            above = f"{row['above_random']:+.0f} [{low:+.0f}, {high:+.0f}]"
        table.add_row(  # Text, because brackets in a plain string are markup
            Text(row["agent"]),
            row["policy"],
            row["where"],
            f"{row['mean']:.0f} ± {row['std']:.0f}",
            str(row["episodes"]),
            Text(above),
            f"{row['real_tics']:,}" if row["where"] == "real" else "",
        )
    return table
