"""Plays agents in the dream and in the real game and makes the rows of the table.

The return of an episode is the sum of its rewards, the game's in reality and the world's in the
dream: in Doom the tics survived. The reset chunk counts in neither. Every episode has a seed of its
own and is played to its end, so that short episodes are not counted more often than long ones.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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

from magi_world.agents import BASELINES, Agent, Retiring, has_agent, load
from magi_world.agents.random_agent import NoOp, Sticky, Sweep
from magi_world.errors import AgentError
from magi_world.evaluation.metrics import difference_interval, mean_and_std
from magi_world.players import players_of
from magi_world.training.collect import Game
from magi_world.world import World

Returns = npt.NDArray[np.float64]
Row = dict[str, Any]

BLIND = (NoOp, Sticky, Sweep)
"""agents that only count the rows they are given"""
COMPARED = ("random", "sweep")
"""agents beside which every row says how far it lies above them"""
_LEAST = 8
"""slots below which leaving some out saves nothing"""
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

    Slot and agent row of episode i are seeded with `first_seed + i`. A batch begins at full width,
    a short last one filled with episodes that are not counted; once half of its slots have ended
    the others go on without them, so that long episodes do not carry the short ones along. The same
    call gives the same returns; another width rounds otherwise. `tick` is told how many episodes
    have just ended. Returns float64 `[episodes]`.
    """
    width = min(batch, episodes)
    returns = np.zeros(-(-episodes // width) * width)
    prompts: list[str] = world.card["prompts"]
    whole = world.rollout(width)
    for start in range(0, episodes, width):
        counted = torch.arange(start, start + width) < episodes
        live = counted.clone()
        rollout, slots = whole, torch.arange(width)  # and the row of each slot
        chunk = rollout.reset(seeds=range(first_seed + start, first_seed + start + width))
        agent.reset(width, seed=first_seed + start)
        _retire(agent, (~live).nonzero().flatten().tolist())
        seen = (chunk.frames if agent.observations == "frames" else chunk.latents).clone()
        while live.any():
            actions = agent.act(seen)
            chunk = rollout.step([prompts[actions[row]] for row in slots.tolist()])
            seen[slots] = chunk.frames if agent.observations == "frames" else chunk.latents
            returns[start + slots.numpy()] += (chunk.reward.cpu() * live[slots]).numpy()
            over = torch.zeros(width, dtype=torch.bool)
            over[slots] = chunk.terminated.cpu() | (rollout.chunk_index >= world.card["horizon"])
            tick(int((live & over).sum()))
            _retire(agent, (live & over).nonzero().flatten().tolist())
            live &= ~over
            going_on = live[slots].nonzero().flatten()
            if _LEAST <= 2 * len(going_on) <= len(slots):
                rollout, slots = rollout.fork(going_on.tolist()), slots[going_on]
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
    drew: Callable[[int], None] = lambda tics: None,
) -> Returns:
    """Play episodes of the real game, `games` of them in lock-step so that encoding is batched.

    Game and agent row of episode i are seeded with `first_seed + i`. An agent that reads latents
    gets each chunk as the world encodes it; for one that reads nothing, nothing is encoded. `tick`
    is told how many episodes have just ended, `drew` how many frames the game has just drawn.
    Returns float64 `[episodes]`.

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
            drew(sum(chunk.valid_frames for chunk in first))
            observations = observe(world, agent, np.stack([chunk.frames for chunk in first]))
            agent.reset(rows, seed=first_seed + start)
            live = list(range(rows))
            while live:
                actions = agent.act(observations)
                chunks = {row: running[row].step(int(actions[row])) for row in live}
                new = np.stack([chunk.frames for chunk in chunks.values()])
                observations[live] = observe(world, agent, new)
                for row, chunk in chunks.items():
                    returns[start + row] += chunk.reward
                    drew(chunk.valid_frames)
                    if chunk.terminated or chunk.truncated:
                        live.remove(row)
                tick(len(chunks) - len(live))
                _retire(agent, sorted(chunks.keys() - set(live)))
    finally:
        for game in running:
            game.close()
    return returns


def _retire(agent: Agent, rows: Sequence[int]) -> None:
    """Tell an agent that wants to know that these episodes have ended."""
    if rows and isinstance(agent, Retiring):
        agent.retire(rows)


def observe(world: World, agent: Agent, frames: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Turn real chunks uint8 `[n, F, H, W, 3]` into what the agent reads, one row each."""
    if isinstance(agent, BLIND):
        return np.zeros((len(frames), 1))
    if agent.observations == "frames":
        return frames
    return world.encode(frames).cpu().numpy()


def load_agents(
    world: World, names: Sequence[str] | None = None, *, greedy: bool | None = None
) -> dict[str, Agent]:
    """Load agents by name (see `load`); None means the baselines and the world's own, if any.

    The sweep is no baseline of a game of one's own, whose actions need not be left and right.

    Raises:
        AgentError: an agent that cannot be loaded, or a world with players.
    """
    _refuse_players(world)
    if names is None:
        names = [*BASELINES, *([world.name] if has_agent(world) else [])]
        if "adapter" in world.card:
            names.remove("sweep")
    return {name: load(name, world=world, greedy=greedy) for name in names}


def _refuse_players(world: World) -> None:
    if players_of(world.card):
        raise AgentError(
            f"the world {world.name!r} has players: evaluate-selfplay scores those who play them"
        )


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
    on_row: Callable[[Row], None] = lambda row: None,
    show: bool = True,
) -> list[Row]:
    """Play each agent in the dream, in the real game or in both; one row for each pair.

    A row holds `agent`, `where`, `mean`, `std` (n - 1), `episodes`, `mean_low` and `mean_high`
    (95 % bootstrap interval of the mean), `policy` ("blind", "greedy", "sampled"), `seeds`,
    `first_seed`, `real_tics` (tics of the real game that the row cost, reset chunks included),
    `returns` (one an episode) and, beside an agent called "random", `above_random` with
    `above_random_low` and `above_random_high`: the difference of the means and its 95 % bootstrap
    interval; beside one called "sweep" likewise `above_sweep`. `make_game` makes the real game;
    `on_row` is told each row as soon as it is played, before it is compared; `show` draws a
    progress bar on stderr.

    Raises:
        AgentError: `where` or `seeds` is not one of those known, there are no episodes to play, or
            the real game is asked for without `make_game`, or the world has players.
    """
    _refuse_players(world)
    if not set(where) <= {"dream", "real"}:
        raise AgentError(f'where {list(where)} is not made of "dream" and "real"')
    if seeds not in FIRST_SEEDS:
        raise AgentError(f"seeds {seeds!r} is not one of {list(FIRST_SEEDS)}")
    for name, number in (("episodes", episodes), ("batch", batch), ("games", games)):
        if number < 1:
            raise AgentError(f"{name} {number} is below 1")
    if "real" in where and make_game is None:
        raise AgentError(f"the real game of {world.name!r} was not given: make_game")
    first_seed = FIRST_SEEDS[seeds]
    rows: list[Row] = []
    with Progress(console=Console(stderr=True), disable=not show) as bar:
        for place in where:
            for name, agent in agents.items():
                task = bar.add_task(f"{name}, {place}", total=episodes)
                tick = partial(bar.advance, task)
                tics: list[int] = []
                if place == "dream":
                    returns = play_dream(
                        world, agent, episodes=episodes, first_seed=first_seed, batch=batch,
                        tick=tick,
                    )  # fmt: skip
                else:
                    assert make_game is not None
                    returns = play_real(
                        make_game, world, agent, episodes=episodes, first_seed=first_seed,
                        games=games, tick=tick, drew=tics.append,
                    )  # fmt: skip
                rows.append(
                    make_row(name, place, returns)
                    | {
                        "policy": describe_policy(agent),
                        "seeds": seeds,
                        "first_seed": first_seed,
                        "real_tics": sum(tics),
                    }
                )
                on_row(rows[-1])
    return compare_with_blind(rows)


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


def compare_with_blind(rows: Sequence[Row]) -> list[Row]:
    """Add to every row how far its mean lies above those of `COMPARED` in the same place."""
    compared = list(rows)
    for name in COMPARED:
        others = {row["where"]: row for row in rows if row["agent"] == name}
        for index, row in enumerate(compared):
            other = others.get(row["where"])
            if other is not None and row["agent"] != name:
                low, high = difference_interval(row["returns"], other["returns"])
                compared[index] = row | {
                    f"above_{name}": row["mean"] - other["mean"],
                    f"above_{name}_low": low,
                    f"above_{name}_high": high,
                }
    return compared


def format_table(rows: Sequence[Row]) -> Table:
    """The rows as one table for people, narrow enough for 80 columns beside one blind agent."""
    seeds = " and ".join(sorted({f"{row['seeds']} ({row['first_seed']} + i)" for row in rows}))
    played = sum(row["real_tics"] for row in rows)
    table = Table(
        box=box.SIMPLE,
        title="Return of an episode",
        caption=f"seeds: {seeds}; in brackets the 95 % bootstrap interval; "
        f"{played:,} tics of the real game played",
    )
    compared = [name for name in COMPARED if any(f"above_{name}" in row for row in rows)]
    for name in ("agent", "policy", "where"):
        table.add_column(name, overflow="fold")
    for name in ("mean ± std", "n", *(f"above {name}" for name in compared)):
        table.add_column(name, justify="right", no_wrap=True)
    n = digits([abs(row["mean"]) + row["std"] for row in rows])
    for row in rows:
        above = [
            format_difference(
                row[f"above_{name}"], row[f"above_{name}_low"], row[f"above_{name}_high"], n
            )
            if f"above_{name}" in row
            else ""
            for name in compared
        ]
        table.add_row(  # Text, because brackets in a plain string are markup
            Text(row["agent"]),
            row["policy"],
            row["where"],
            f"{row['mean']:.{n}f} ± {row['std']:.{n}f}",
            str(row["episodes"]),
            *map(Text, above),
        )
    return table


def format_difference(value: float, low: float, high: float, n: int = 0) -> str:
    """A difference of two means with its interval, n digits behind the point."""
    return f"{value:+.{n}f} [{low:+.{n}f}, {high:+.{n}f}]"


def digits(numbers: Iterable[float]) -> int:
    """Digits behind the point with which a table of such numbers is printed."""
    largest = max(map(abs, numbers), default=0.0)
    return 0 if not largest < 30 else 1 if largest >= 3 else 2
