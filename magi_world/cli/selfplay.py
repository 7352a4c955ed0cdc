"""The verb `evaluate-selfplay`: score an agent of a world with players in the real game."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from magi_world.cli.evaluate_agent import Seeds
from magi_world.cli.output import emit_json, say
from magi_world.cli.worlds import AsJson, Device, DType
from magi_world.disk import check_folder, write_text
from magi_world.errors import ConfigError

if TYPE_CHECKING:
    from magi_world.agents import Agent

BUILT_IN = "built-in"
"""the opponent that is part of Atari's Pong"""


def evaluate_selfplay(
    agent: Annotated[str, typer.Option(help="Folder of an agent, or the world's name.")],
    *,
    world: Annotated[str, typer.Option(help="A world's name, or a folder.")] = "pong-duel",
    opponent: Annotated[
        list[str] | None,
        typer.Option(
            help="random, noop, built-in (ALE/Pong-v5), or an agent's folder; again for more. By "
            "default random, the agent's earlier ages and built-in."
        ),
    ] = None,
    games: Annotated[int, typer.Option(min=2, help="Games against each opponent.")] = 100,
    width: Annotated[int, typer.Option(min=1, help="Games played side by side.")] = 10,
    seeds: Annotated[
        Seeds, typer.Option(help="final (10,000 + i) or validation (20,000 + i, for choosing).")
    ] = Seeds.FINAL,
    greedy: Annotated[
        bool | None,
        typer.Option("--greedy/--sampled", help="How agents play; as they were saved by default."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File that gets the rows as JSON.")] = None,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Play real games and print points won minus points lost, with 95 % intervals.

    Half of the games against each opponent are played on either side; against the one that is built
    into the game the agent is always the right paddle.
    """
    import json

    from magi_world import agents
    from magi_world.agents.evaluation import FIRST_SEEDS
    from magi_world.agents.matches import match, play_duels, score
    from magi_world.cli.games import game_maker, real_game
    from magi_world.players import players_of
    from magi_world.world import load

    loaded = load(world, device=device, dtype=dtype)
    players = players_of(loaded.card)
    if not players:
        raise ConfigError(f"the world {loaded.name!r} has no players: use evaluate-agent")

    def read(name: str) -> "Agent":
        return agents.load(name, world=loaded, greedy=greedy)

    if out is not None:
        check_folder(out.parent)
        if out.is_dir():
            raise ConfigError(f"{out} is a folder: name a file")
    names = opponent or ["random", *_ages(agent), BUILT_IN]
    read(agent)  # what cannot be read is said before the first game
    makers: dict[str, Callable[[], Any]] = {}
    for name in names:
        if name == BUILT_IN:
            makers[name] = game_maker("pong-atari")
        else:
            read(name)
            makers[name] = real_game(loaded)
    rows: list[dict[str, Any]] = []
    for name, make_game in makers.items():
        say(f"{games} real games against {name}")
        common: dict[str, Any] = {
            "games": games, "first_seed": FIRST_SEEDS[seeds.value], "width": width
        }  # fmt: skip
        if name == BUILT_IN:
            own = read(agent)
            won = play_duels(make_game, loaded, [own], players=players[:1], **common)
            row = {**score(won[:, 0]), "sides": {players[0]: float(won[:, 0].mean())}}
        else:
            row = match(make_game, loaded, lambda: (read(agent), read(name)), **common)  # noqa: B023
        rows.append({"agent": agent, "opponent": name, "seeds": seeds.value, **row})
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
            write_text(out, json.dumps(rows, indent=1) + "\n")
    if as_json:
        emit_json(rows)
    else:
        for row in rows:
            sides = ", ".join(f"{mean:+.1f} as {name}" for name, mean in row["sides"].items())
            typer.echo(
                f"{row['opponent']}: {row['mean']:+.2f} points a game "
                f"[{row['low']:+.2f}, {row['high']:+.2f}], n = {row['n']}, "
                f"{100 * row['wins']:.0f} % won ({sides})"
            )


def _ages(agent: str) -> list[str]:
    """Folders of an agent's earlier ages, youngest first."""
    return [str(folder) for folder in sorted((Path(agent) / "ages").glob("[0-9]*"))]
