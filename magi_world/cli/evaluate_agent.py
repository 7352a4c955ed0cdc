"""The verb `evaluate-agent`: play agents in dream and reality, keep the rows, print the table."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from magi_world.cli.evaluate import RealGame
from magi_world.cli.output import emit_json, emit_markdown, say
from magi_world.cli.scoring import check_record, play_and_record
from magi_world.cli.worlds import AsJson, Device, DType

WIDTH = 220
"""columns of a table that is not printed to a terminal"""


class Seeds(StrEnum):
    """Which seeds an agent is scored on."""

    FINAL = "final"
    VALIDATION = "validation"


_RESULTS = Path("docs/results")


def evaluate_agent(
    world: Annotated[
        str, typer.Option(help="A world's name, or a folder with one.")
    ] = "doom-take-cover",
    agent: Annotated[
        list[str] | None,
        typer.Option(
            help="noop, random, sticky, sweep, a world's name (its shipped agent) or a folder; "
            "frozen: before it shows it each episode's first chunk only; again for more. "
            "The four and the shipped one by default."
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each agent and place.")] = 100,
    real: Annotated[bool, typer.Option("--real", help="Only in the real game.")] = False,
    dream: Annotated[bool, typer.Option("--dream", help="Only in the dream.")] = False,
    seeds: Annotated[
        Seeds,
        typer.Option(
            help="final (10,000 + i) or validation (20,000 + i, for choosing); with --table, whose "
            "rows it shows."
        ),
    ] = Seeds.FINAL,
    greedy: Annotated[
        bool | None,
        typer.Option(
            "--greedy/--sampled", help="How trained agents play; as they were saved by default."
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Dreams played side by side.")] = 32,
    record: Annotated[
        Path | None,
        typer.Option(help="File, such as docs/results/NAME.json, that gets one row a score."),
    ] = None,
    label: Annotated[
        str | None, typer.Option(help="Line of the table for the rows; by the agent's kind.")
    ] = None,
    validation_tics: Annotated[
        int,
        typer.Option(
            min=0, help="Real tics that choosing the agent cost, beside recorded validation rows."
        ),
    ] = 0,
    game: RealGame = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print the table of all recorded rows; play nothing.")
    ] = False,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="With --table: play the recorded rows again.")
    ] = False,
    results: Annotated[
        Path, typer.Option(help="With --table: folder with files of recorded rows.")
    ] = _RESULTS,
    plot: Annotated[
        Path | None,
        typer.Option(help="With --table: picture to draw, real over dreamed return."),
    ] = None,
    bands: Annotated[
        float | None,
        typer.Option(
            help="With --table: also how many of the episodes that reach each band of returns, "
            "this wide, end in it."
        ),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="With --table: print Markdown, as README has it.")
    ] = False,
    update_card: Annotated[
        bool,
        typer.Option(
            "--update-card",
            help="With --table: write its lines into the card of the world, world.json; those on "
            "validation seeds as a comparison of the folder's name.",
        ),
    ] = False,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Play agents in the dream and in the real game and print one table of their returns.

    With --record each score is kept as a row, and --table prints the table of all such rows.

    Example: magi-world evaluate-agent --world run/world --agent random --agent agent --episodes 30
    """
    from magi_world.agents.evaluation import format_table, load_agents
    from magi_world.cli.games import real_game
    from magi_world.world import load

    where = ["dream", "real"] if real == dream else ["real"] if real else ["dream"]
    if markdown and as_json:
        raise typer.BadParameter("excludes --json", param_hint="'--markdown'")
    if table:
        playing = {
            "record": record is not None, "label": label is not None, "greedy": greedy is not None
        }  # fmt: skip
        for name, is_given in playing.items():
            if is_given:
                raise typer.BadParameter("goes without --table", param_hint=f"'--{name}'")
        _table(
            results, world, game, where, seeds, plot, bands,
            rerun=rerun, card=update_card, markdown=markdown, as_json=as_json,
            device=device, dtype=dtype,
        )  # fmt: skip
        return
    if record is None and (label is not None or validation_tics):
        name = "label" if label is not None else "validation-tics"
        raise typer.BadParameter("goes with --record", param_hint=f"'--{name}'")
    only = {"rerun": rerun, "plot": plot, "bands": bands, "markdown": markdown,
            "update-card": update_card, "results": results != _RESULTS}  # fmt: skip
    for name, given in only.items():
        if given is not None and given is not False:  # 0 was given, too
            raise typer.BadParameter("goes with --table only", param_hint=f"'--{name}'")
    check_record(record)
    loaded = load(world, device=device, dtype=dtype)
    rows = play_and_record(
        loaded,
        load_agents(loaded, agent, greedy=greedy),
        where=where,
        episodes=episodes,
        seeds=seeds.value,
        make_game=real_game(loaded, game) if "real" in where else None,
        batch=batch,
        record=record,
        label=label,
        validation_tics=validation_tics,
    )
    if as_json:
        emit_json(rows)
    else:
        print_table(format_table(rows))


def _table(
    folder: Path,
    world: str,
    game: str | None,
    where: list[str],
    seeds: Seeds,
    plot: Path | None,
    bands: float | None,
    *,
    rerun: bool,
    card: bool,
    markdown: bool,
    as_json: bool,
    device: str | None,
    dtype: str | None,
) -> None:
    """Print the table of the recorded rows, and whatever else was asked for beside it."""
    from magi_world.agents.files import vae_hash, world_hash
    from magi_world.agents.results import read_results, replay
    from magi_world.agents.results_bands import format_bands, make_bands
    from magi_world.agents.results_table import (
        format_lines,
        format_replayed,
        make_lines,
        plot_lines,
    )
    from magi_world.cli.games import real_game
    from magi_world.evaluation.card import update_card
    from magi_world.world import load

    rows = read_results(folder)
    lines = make_lines(rows, seeds.value)
    banded = None if bands is None else make_bands(rows, bands, seeds=seeds.value)
    loaded = load(world, device=device, dtype=dtype) if rerun or card else None
    if plot is not None:
        plot_lines(lines, plot)
        say(f"plot: {plot}")
    if loaded is not None and card:
        if seeds is Seeds.FINAL:
            hashes = {"world_hash": world_hash(loaded), "vae_hash": vae_hash(loaded)}
            own = [
                row
                for row in rows
                if row["game"] == loaded.card["game"]
                and all(row[name] in (None, known) for name, known in hashes.items())
            ]
            update_card(loaded, {"agents": make_lines(own, seeds.value)})
        else:  # settings compared, among them other trainings of the world
            compared = loaded.card.get("compared", {})
            update_card(loaded, {"compared": {**compared, folder.resolve().name: lines}})
        say(f"card updated: {loaded.folder}")
    replayed = None
    if loaded is not None and rerun:
        chosen = [row for row in rows if row["where"] in where and row["seeds"] == seeds.value]
        real = any(row["where"] == "real" for row in chosen)
        replayed = replay(loaded, chosen, real_game(loaded, game) if real else None)
    if as_json:
        more = {"bands": banded, "replayed": replayed}
        found = {name: part for name, part in more.items() if part is not None}
        emit_json({"table": lines, **found} if found else lines)
        return
    tables = [format_lines(lines, seeds.value)]
    if banded:
        tables.append(format_bands(banded, seeds.value))
    if replayed is not None:
        tables.append(format_replayed(replayed))
    for index, one in enumerate(tables):
        if markdown:
            print("\n" * bool(index), end="")
            emit_markdown(one)
        else:
            print_table(one)


def print_table(table: Any) -> None:
    """Print a table of rich, as wide as it is where nobody watches.

    Where a terminal is too narrow for it, cells are folded: a number that is cut off says nothing.
    """
    from rich.console import Console

    # a file or a pipe has no width that a table should be squeezed into
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    whole = console.measure(table, options=console.options.update(max_width=10 * WIDTH))
    if whole.maximum > console.width:
        for column in table.columns:
            column.no_wrap, column.overflow = False, "fold"
    console.print(table)
