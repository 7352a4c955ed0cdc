"""The verb `evaluate`: measure a world against the real game."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from magi_world.cli.measuring import parse_counts, print_report, report_game
from magi_world.cli.output import emit_json, say
from magi_world.cli.worlds import AsJson, Device, DType, Steps, Temperature, WorldName

if TYPE_CHECKING:
    from magi_world.training.episodes import EpisodeData
    from magi_world.world import World

RealGame = Annotated[
    str | None,
    typer.Option(
        help="The real game: a shipped one's name, or an adapter as package.module:Class or "
        "path/to/file.py:Class; by default the one that the world's card names."
    ),
]


def evaluate(
    world: WorldName = "doom-take-cover",
    *,
    out: Annotated[Path, typer.Option(help="Folder for report.json and its pictures.")],
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder with Minari datasets in or below it; again for more. "
            "Without it, episodes of the real game are played on the spot."
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=2, help="Held-out episodes to measure on.")] = 96,
    training_chunks: Annotated[
        int, typer.Option(min=100, help="Real chunks for the PCA and the inverse model.")
    ] = 12_000,
    clips: Annotated[int, typer.Option(min=1, help="Clips for open-loop prediction.")] = 320,
    moments: Annotated[
        int, typer.Option(min=1, help="Real moments from which every action is held.")
    ] = 300,
    draws: Annotated[
        int,
        typer.Option(
            min=1, help="Dreams of each held-out chunk, whose mean says how likely an end is."
        ),
    ] = 8,
    histories: Annotated[
        int, typer.Option(min=1, help="Real histories from which hazard by depth dreams on.")
    ] = 1024,
    group: Annotated[
        int, typer.Option(min=1, help="Most chunks of a group that the inverse model judges.")
    ] = 2000,
    real_episodes: Annotated[
        int, typer.Option(min=1, help="Real episodes of each period of the blind sweep.")
    ] = 100,
    length_episodes: Annotated[
        int, typer.Option(min=2, help="Episodes of each policy and place whose lengths count.")
    ] = 200,
    batch: Annotated[
        int, typer.Option(min=1, help="Slots that dream whole episodes together.")
    ] = 100,
    skip_sweeps: Annotated[
        bool, typer.Option(help="Do not choose the blind sweep's period anew.")
    ] = False,
    skip_lengths: Annotated[
        bool, typer.Option(help="Do not compare dreamed and real episode lengths.")
    ] = False,
    skip_branches: Annotated[
        bool, typer.Option(help="Do not play real moments again under other actions.")
    ] = False,
    videos: Annotated[
        bool, typer.Option("--videos", help="Film 20 dreamed seconds under each policy.")
    ] = False,
    kv_ranges: Annotated[
        str | None, typer.Option(help="A table of these KV ranges, such as 1,4,8,16,32.")
    ] = None,
    steps_table: Annotated[
        str | None, typer.Option(help="A table of these numbers of denoising steps.")
    ] = None,
    tables_only: Annotated[
        bool, typer.Option("--tables-only", help="Measure those tables and nothing else.")
    ] = False,
    card: Annotated[
        bool | None,
        typer.Option(
            "--update-card/--no-update-card",
            help="Write the numbers into the world's card, world.json; by default if the world is "
            "a folder, not one that ships.",
        ),
    ] = None,
    steps: Steps = None,
    temperature: Temperature = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seeds clips, noise and drawn actions.")] = 0,
    game: RealGame = None,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Measure a world against the real game; write a report, pictures and the card's numbers.

    Picture quality, open-loop prediction, termination and its calibration, hazard by depth, effect
    of the prompt, what another action would have done, episode lengths and the blind sweep's
    period, each with its n. Whole episodes are dreamed at temperature 1, whatever the others are.
    """
    from magi_world.disk import check_folder
    from magi_world.evaluation.card import card_entries, update_card
    from magi_world.evaluation.dreaming import DreamSettings
    from magi_world.evaluation.report import evaluate_tables, evaluate_world
    from magi_world.evaluation.sizes import Sizes
    from magi_world.evaluation.variants import Tables
    from magi_world.training.collect import is_held_out
    from magi_world.world import load

    tables = Tables(
        kv_ranges=parse_counts(kv_ranges, "--kv-ranges"),
        step_counts=parse_counts(steps_table, "--steps-table"),
    )
    if tables_only and not (tables.kv_ranges or tables.step_counts):
        raise typer.BadParameter("needs --kv-ranges or --steps-table", param_hint="'--tables-only'")
    check_folder(out)
    loaded = load(world, device=device, dtype=dtype)
    settings = DreamSettings(steps=steps, temperature=temperature, seed=seed)
    sizes = Sizes(
        held_out_episodes=episodes,
        training_chunks=training_chunks,
        clips=clips,
        drawn_clips=clips,
        group=group,
        draws=draws,
        histories=histories,
        moments=moments,
        sweep_episodes=real_episodes,
    )
    played = _episodes(loaded, data, episodes, game)
    if tables_only:
        report = evaluate_tables(
            loaded, played, is_held_out, out, tables, settings=settings, sizes=sizes, say=say
        )
    else:
        report = evaluate_world(
            loaded,
            played,
            is_held_out,
            out,
            settings=settings,
            sizes=sizes,
            game=report_game(
                loaded,
                game,
                lengths=not skip_lengths,
                sweeps=not skip_sweeps,
                films=videos,
                branches=not skip_branches,
                episodes=length_episodes,
                batch=batch,
                steps=steps,
            ),
            tables=tables,
            say=say,
        )
    if Path(world).is_dir() if card is None else card:
        try:
            update_card(loaded, card_entries(report))
            say(f"card updated: {loaded.folder}")
        except OSError as error:
            say(f"card not updated, the numbers are in the report: {error}")
    if as_json:
        emit_json(report)
    else:
        print_report(report)
    say(f"report and pictures: {out}")


def _episodes(
    world: "World", data: list[Path] | None, held_out: int, game: str | None
) -> "Iterator[EpisodeData]":
    from magi_world.cli.games import (
        dataset_folders,
        mixture,
        play_episodes,
        read_datasets,
        real_game,
    )

    if data:
        return read_datasets(dataset_folders(data), world)
    from magi_world.training.collect import FIRST_SEED, is_held_out

    make_game = real_game(world, game)
    say(f"no --data: playing episodes of {world.name}")
    behaviours = mixture(make_game())
    seeds = itertools.count(FIRST_SEED)
    held = itertools.islice(filter(is_held_out, seeds), held_out)
    rest = itertools.filterfalse(is_held_out, itertools.count(FIRST_SEED))
    return itertools.chain(
        play_episodes(make_game, behaviours, held), play_episodes(make_game, behaviours, rest)
    )
