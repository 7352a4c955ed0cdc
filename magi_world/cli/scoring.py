"""Playing agents and keeping their scores, for the verbs that do."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magi_world.agents import Agent
    from magi_world.world import World

GAMES = 10
"""real games played side by side"""


def check_record(record: Path | None) -> None:
    """Say that rows cannot be kept in a file before hours of play, not after.

    Raises:
        ConfigError: its folder cannot be written.
        AgentError: it holds something else.
    """
    from magi_world.agents.results import read_rows
    from magi_world.disk import check_folder

    if record is not None:
        check_folder(record.parent)
        if record.exists():
            read_rows(record)


def play_and_record(
    world: "World",
    agents: Mapping[str, "Agent"],
    *,
    where: Sequence[str],
    episodes: int,
    seeds: str,
    make_game: Callable[[], Any] | None,
    batch: int,
    record: Path | None,
    label: str | None = None,
    validation_tics: int = 0,
) -> list[dict[str, Any]]:
    """The rows of `evaluate_agents`; with `record` each score is added to that file at once."""
    from magi_world.agents.evaluation import Row, evaluate_agents
    from magi_world.agents.results import record as keep
    from magi_world.agents.results import result_row

    def on_row(row: Row) -> None:
        if record is None:
            return
        width = min(episodes, batch if row["where"] == "dream" else GAMES)
        keep(
            record,
            result_row(
                world, agents[row["agent"]], row, label=label, validation_tics=validation_tics,
                width=width,
            ),
        )  # fmt: skip

    return evaluate_agents(
        world, agents, where=where, episodes=episodes, seeds=seeds, make_game=make_game,
        batch=batch, games=GAMES, on_row=on_row,
    )  # fmt: skip
