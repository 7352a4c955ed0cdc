"""Verbs that measure: `evaluate` a world, `evaluate-agent` in the dream and in the real game."""

import itertools
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from magi_world.cli.output import emit_json, emit_pairs, say
from magi_world.cli.worlds import AsJson, Device, DType, Steps, Temperature, WorldName

if TYPE_CHECKING:
    from magi_world.evaluation.report import Game as ReportGame
    from magi_world.training.collect import Game
    from magi_world.training.episodes import EpisodeData
    from magi_world.world import World

LENGTH_SEED = 600_000
"""first of the seeds on which dreamed and real lengths of blind policies are compared"""
LENGTH_POLICIES = ("noop", "sticky")


class Seeds(StrEnum):
    """Which seeds an agent is scored on."""

    FINAL = "final"
    VALIDATION = "validation"


def evaluate_agent(
    world: Annotated[
        str, typer.Option(help="A world's name, or a folder with one.")
    ] = "doom-take-cover",
    agent: Annotated[
        list[str] | None,
        typer.Option(
            help="noop, random, sticky, sweep, a world's name (its shipped agent) or a folder; "
            "again for more. The four and the shipped one by default."
        ),
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each agent and place.")] = 100,
    real: Annotated[bool, typer.Option("--real", help="Only in the real game.")] = False,
    dream: Annotated[bool, typer.Option("--dream", help="Only in the dream.")] = False,
    seeds: Annotated[
        Seeds, typer.Option(help="final (10,000 + i) or validation (20,000 + i, for choosing).")
    ] = Seeds.FINAL,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Play agents in the dream and in the real game and print one table, in tics."""
    from magi_world.agents.evaluation import evaluate_agents, format_table, load_agents
    from magi_world.cli.games import game_maker
    from magi_world.world import load

    where = ["dream", "real"] if real == dream else ["real"] if real else ["dream"]
    loaded = load(world, device=device, dtype=dtype)
    rows = evaluate_agents(
        loaded,
        load_agents(loaded, agent),
        where=where,
        episodes=episodes,
        seeds=seeds.value,
        make_game=game_maker(loaded.name) if "real" in where else None,
    )
    if as_json:
        emit_json(rows)
    else:
        from rich.console import Console

        # a file or a pipe has no width that a table should be squeezed into
        Console(width=None if sys.stdout.isatty() else 160).print(format_table(rows))


def evaluate(
    world: WorldName = "doom-take-cover",
    *,
    out: Annotated[Path, typer.Option(help="Folder for report.json and the picture strips.")],
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
    clips: Annotated[int, typer.Option(min=1, help="Clips for open-loop prediction.")] = 256,
    real_episodes: Annotated[
        int,
        typer.Option(min=1, help="Real episodes of each blind policy: lengths and sweeps."),
    ] = 100,
    skip_sweeps: Annotated[
        bool, typer.Option(help="Do not choose the blind sweep's period anew.")
    ] = False,
    skip_lengths: Annotated[
        bool, typer.Option(help="Do not compare dreamed and real episode lengths.")
    ] = False,
    card: Annotated[
        bool,
        typer.Option(
            "--update-card/--no-update-card",
            help="Write the numbers into the world's card, world.json.",
        ),
    ] = True,
    steps: Steps = None,
    temperature: Temperature = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seeds clips, noise and drawn actions.")] = 0,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Measure a world against the real game; write a report, strips and the card's numbers.

    Picture quality, open-loop prediction, termination, effect of the prompt, episode lengths and
    the blind sweep's period, each with its n.
    """
    from magi_world.evaluation.dreaming import DreamSettings
    from magi_world.evaluation.report import Sizes, card_entries, evaluate_world, update_card
    from magi_world.training.collect import is_held_out
    from magi_world.world import load

    loaded = load(world, device=device, dtype=dtype)
    report = evaluate_world(
        loaded,
        _episodes(loaded, data, episodes),
        is_held_out,
        out,
        settings=DreamSettings(steps=steps, temperature=temperature, seed=seed),
        sizes=Sizes(
            held_out_episodes=episodes,
            training_chunks=training_chunks,
            clips=clips,
            sweep_episodes=real_episodes,
        ),
        game=_real_game(loaded, real_episodes, lengths=not skip_lengths, sweeps=not skip_sweeps),
        say=say,
    )
    if card:
        try:
            update_card(loaded, card_entries(report))
            say(f"card updated: {loaded.folder}")
        except OSError as error:
            say(f"card not updated, the numbers are in the report: {error}")
    if as_json:
        emit_json(report)
    else:
        emit_pairs(headline(report))
    say(f"report and strips: {out}")


def headline(report: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a report that a person looks at first, by a short name."""
    coding, ahead = report["reconstruction"], report["termination"]
    effect = report["prompt_effect"]
    lines: dict[str, Any] = {
        f"VAE PSNR, dB (n={coding['n']})": coding["vae"]["psnr"],
        "patch PCA PSNR, dB": coding["pca"]["psnr"],
        "VAE PSNR on moving pixels, dB": coding["vae"]["moving_psnr"],
        "patch PCA PSNR on moving pixels, dB": coding["pca"]["moving_psnr"],
    }
    for distance, row in report["prediction"]["psnr_at"].items():
        name = f"open loop PSNR after {distance} chunks, dB (n={report['prediction']['n']})"
        lines[name] = row["dream"]
        lines[f"copy-last PSNR after {distance} chunks, dB"] = row["copy_last"]
    lines[f"termination AUC (n={ahead['n']}, {ahead['terminal']} ends)"] = ahead["auc"]
    lines["AUC of the episode's age"] = ahead["auc_age"]
    for name in ("real_held_out", "real_clips_through_vae", "dreamed_with_real_actions"):
        row = effect[name]
        lines[f"action named, {name.replace('_', ' ')} (n={row['n']})"] = row["accuracy"]
    for name, row in effect["drawn_actions"].items():
        if isinstance(row, dict):
            text = f"action named, drawn actions, {name.replace('_', ' ')} (n={row['n']})"
            lines[text] = row["accuracy"]
    for name, row in report.get("lengths", {}).items():
        for place in ("dream", "real"):
            lines[f"tics of {name}, {place} (n={row[place]['n']})"] = row[place]["mean"]
    if "sweep_period" in report:
        lines["best sweep period, chunks"] = report["sweep_period"]
    return lines


def _episodes(world: "World", data: list[Path] | None, held_out: int) -> "Iterator[EpisodeData]":
    from magi_world.cli.games import (
        dataset_folders,
        game_maker,
        mixture,
        play_episodes,
        read_datasets,
    )

    if data:
        return read_datasets(dataset_folders(data))
    from magi_world.training.collect import FIRST_SEED, is_held_out

    make_game = game_maker(world.name)
    say(f"no --data: playing episodes of {world.name}")
    behaviours = mixture(len(world.card["prompts"]))
    seeds = itertools.count(FIRST_SEED)
    held = itertools.islice(filter(is_held_out, seeds), held_out)
    rest = itertools.filterfalse(is_held_out, itertools.count(FIRST_SEED))
    return itertools.chain(
        play_episodes(make_game, behaviours, held), play_episodes(make_game, behaviours, rest)
    )


def _real_game(world: "World", episodes: int, *, lengths: bool, sweeps: bool) -> "ReportGame":
    """What the report needs of the real game, wired from agents and the game itself."""
    from magi_world import agents
    from magi_world.agents.evaluation import play_dream, play_real
    from magi_world.agents.random_agent import Sweep
    from magi_world.cli.games import game_maker
    from magi_world.evaluation.report import Game as ReportGame

    if not (lengths or sweeps):
        return ReportGame()
    make_game: Callable[[], Game] = game_maker(world.name)
    make_game().close()  # a missing package is told now and not after ten minutes
    players: dict[str, Any] = {}
    for name in LENGTH_POLICIES if lengths else ():
        agent = agents.load(name, world=world)
        players[name] = (
            partial(play_dream, world, agent, episodes=episodes, first_seed=LENGTH_SEED),
            partial(play_real, make_game, world, agent, episodes=episodes, first_seed=LENGTH_SEED),
        )

    def play_sweep(period: int, first_seed: int, episodes: int) -> Any:
        return play_real(make_game, world, Sweep(period), episodes=episodes, first_seed=first_seed)

    return ReportGame(lengths=players, play_sweep=play_sweep if sweeps else None)
