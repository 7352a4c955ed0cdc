"""The report on a world: all measures in one run, `report.json`, strips and plots."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from magi_world.disk import write_text
from magi_world.evaluation.branches import Branch, branch_out, measure_branches
from magi_world.evaluation.card import finite
from magi_world.evaluation.clips import Clips, Episode, cut_clips
from magi_world.evaluation.dreaming import DreamSettings, dream, prompts_of
from magi_world.evaluation.films import Policy, film_behaviours
from magi_world.evaluation.hazard import draw_histories, dream_on, measure_hazard
from magi_world.evaluation.inverse_model import train
from magi_world.evaluation.lengths import Lengths, Play, choose_sweep, measure_lengths
from magi_world.evaluation.metrics import Frames
from magi_world.evaluation.mobility import learn_travel
from magi_world.evaluation.motion import CONTEXT, Moments, episode_moments
from magi_world.evaluation.objects import places_in_prediction, places_in_reconstruction
from magi_world.evaluation.one_step_ahead import (
    measure_damage,
    measure_points,
    measure_termination,
    one_step_ahead,
)
from magi_world.evaluation.plots import plot_calibration, require_matplotlib
from magi_world.evaluation.prediction import HORIZONS, measure_prediction
from magi_world.evaluation.prompt_effect import (
    add_ratios,
    measure_drawn_actions,
    measure_no_action,
    measure_real_actions,
)
from magi_world.evaluation.reading import read, read_held_out
from magi_world.evaluation.reconstruction import measure_reconstruction
from magi_world.evaluation.sizes import Sizes
from magi_world.evaluation.spots import require_scipy
from magi_world.evaluation.strips import write_strips
from magi_world.evaluation.variants import Tables, check_tables, measure_tables
from magi_world.media.writing import require_av
from magi_world.players import players_of
from magi_world.world import World

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Player:
    """A policy, and how its episodes are played to their end in the dream and in the real game."""

    policy: Policy
    dream: Lengths
    real: Lengths


def nobody(period: int | None) -> Mapping[str, Player]:
    """No players: nothing that needs them is measured."""
    return {}


@dataclass(frozen=True, kw_only=True)
class Game:
    """What the measures need of the real game and of policies, as callables."""

    players: Callable[[int | None], Mapping[str, Player]] = nobody
    """gives the players by name; it is told the blind sweep's period, None if nobody knows it"""
    lengths: bool = True
    """whether the players' episode lengths are compared"""
    films: bool = False
    """whether the players are filmed in the dream"""
    play_sweep: Play | None = None
    """plays the blind sweep, so that its period is chosen"""
    branch: Branch | None = None
    """plays an episode again up to a moment and goes on otherwise"""


def evaluate_world(
    world: World,
    episodes: Iterable[Episode],
    is_held_out: Callable[[int], bool],
    out: str | Path,
    *,
    settings: DreamSettings | None = None,
    sizes: Sizes | None = None,
    game: Game | None = None,
    tables: Tables | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Run every measure, write `report.json` and its pictures into `out`, return the report.

    `episodes` is read once and only as far as needed; `is_held_out(seed)` says which of them the
    world never saw. The report is plain data; numbers that do not exist are null.

    Raises:
        DatasetError: too few held-out or training episodes, or none long enough for its clips.
        MissingPackage: matplotlib, scipy, Pillow or, for films, PyAV is not installed.
    """
    require_matplotlib()
    require_scipy()
    settings, sizes = settings or DreamSettings(), sizes or Sizes()
    game, tables = game or Game(), tables or Tables()
    if game.films:
        require_av()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    held_out, pca, training_moments = read(world, episodes, is_held_out, sizes, say)
    say(f"{len(held_out)} held-out episodes, {len(training_moments)} training moments")
    check_tables(held_out, tables, sizes)
    report = _head(world, held_out, settings, sizes)

    report["reconstruction"] = measure_reconstruction(
        world, held_out, pca, count=sizes.reconstruction_chunks, seed=settings.seed
    )
    say(f"VAE {report['reconstruction']['vae']['psnr']:.2f} dB")

    clips = cut_clips(
        held_out, sizes.clips, prefix=sizes.prefix, horizon=max(HORIZONS), seed=settings.seed
    )
    dreamed = dream(world, clips, clips.actions[:, clips.prefix :], settings)
    report["prediction"] = measure_prediction(world, clips, dreamed[:, CONTEXT:])
    if "objects" in world.card:
        report["places"] = {
            "vae": places_in_reconstruction(
                world, held_out, count=sizes.reconstruction_chunks, seed=settings.seed
            ),
            "dream": places_in_prediction(
                clips, dreamed[:, CONTEXT:], world.card["objects"], HORIZONS
            ),
        }
    say(f"open-loop prediction of {len(clips)} clips measured")
    write_strips(out, clips, dreamed[:, CONTEXT:], sizes.strips)

    ahead = one_step_ahead(world, held_out, settings, draws=sizes.draws, say=say)
    report["termination"] = ends = measure_termination(ahead, sizes.draws)
    report["damage"] = measure_damage(ahead)
    report["points"] = measure_points(ahead, players_of(world.card))
    title = f"{world.name}: {ends['terminal']} ends in {ends['n']} held-out chunks"
    plot_calibration(out / "calibration.png", ends["calibration"], title)

    places = draw_histories(held_out, sizes.histories, settings.seed)
    report["hazard"] = measure_hazard(dream_on(world, held_out, places, settings, say=say))

    report["prompt_effect"] = _prompt_effect(
        world, training_moments, clips, dreamed, held_out, settings, sizes, say
    )
    del dreamed
    write_report(out, report)  # whole episodes take long: what is measured outlives what may break
    if game.branch is not None:
        places = draw_histories(held_out, sizes.moments, settings.seed + 1)
        branches = branch_out(world, held_out, places, game.branch, settings, say=say)
        report["branches"] = measure_branches(branches)
        write_report(out, report)
    _play_games(report, world, game, out, settings, sizes, say)
    report |= measure_tables(world, held_out, tables, settings, sizes, say)
    return write_report(out, report)


def evaluate_tables(
    world: World,
    episodes: Iterable[Episode],
    is_held_out: Callable[[int], bool],
    out: str | Path,
    tables: Tables,
    *,
    settings: DreamSettings | None = None,
    sizes: Sizes | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Measure the tables only; write `report.json` into `out` and return the report.

    Raises:
        DatasetError: there are no held-out episodes, or none long enough.
    """
    settings, sizes = settings or DreamSettings(), sizes or Sizes()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    held_out = read_held_out(episodes, is_held_out, sizes.held_out_episodes)
    check_tables(held_out, tables, sizes)
    report = _head(world, held_out, settings, sizes)
    return write_report(out, report | measure_tables(world, held_out, tables, settings, sizes, say))


def _play_games(
    report: dict[str, Any],
    world: World,
    game: Game,
    out: Path,
    settings: DreamSettings,
    sizes: Sizes,
    say: Say,
) -> None:
    """What needs policies: the sweep's period, lengths and films, in this order."""
    if game.play_sweep is not None:
        best, sweeps = choose_sweep(game.play_sweep, episodes=sizes.sweep_episodes, say=say)
        report["sweep_period"] = best
        report["sweeps"] = sweeps
    players = game.players(report.get("sweep_period", world.card.get("sweep_period")))
    if players and game.lengths:
        pairs = {name: (player.dream, player.real) for name, player in players.items()}
        report["lengths"] = measure_lengths(pairs, say)
    if players and game.films:
        policies = {name: player.policy for name, player in players.items()}
        report["films"] = film_behaviours(
            world, policies, out, settings, seconds=sizes.film_seconds, say=say
        )


def write_report(out: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Write `report.json` into a folder; returns the report as JSON holds it."""
    plain: dict[str, Any] = finite(report)
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(out / "report.json", text + "\n")
    return plain


def _head(
    world: World, held_out: Sequence[Episode], settings: DreamSettings, sizes: Sizes
) -> dict[str, Any]:
    return {
        "world": world.name,
        "setting": _setting(world, settings, sizes),
        "held_out": {
            "episodes": len(held_out),
            "chunks": sum(len(episode.frames) for episode in held_out),
        },
    }


def _prompt_effect(
    world: World,
    training_moments: Moments,
    clips: Clips,
    dreamed: Frames,
    held_out: Sequence[Episode],
    settings: DreamSettings,
    sizes: Sizes,
    say: Say,
) -> dict[str, Any]:
    num_actions = len(prompts_of(world))
    travel = learn_travel(training_moments, num_actions)
    model = train(
        training_moments, num_actions, epochs=sizes.inverse_epochs, seed=settings.seed, say=say
    )
    real = [part for episode in held_out for part in episode_moments(episode)]
    result: dict[str, Any] = {
        "unit": "chunks",
        "training_moments": len(training_moments),
        "usual_shift": travel.shift.tolist(),
        **measure_real_actions(
            world, model, clips, dreamed, real, travel, group=sizes.group, seed=settings.seed
        ),
    }
    driven = clips[: sizes.drawn_clips]
    result["drawn_actions"] = measure_drawn_actions(
        world,
        model,
        driven,
        settings,
        travel,
        horizon=sizes.drawn_horizon,
        hold=sizes.drawn_hold,
        group=sizes.group,
        say=say,
    )
    result["no_action"] = measure_no_action(
        world, model, driven, settings, travel, horizon=sizes.drawn_horizon
    )
    add_ratios(result)
    return result


def _setting(world: World, settings: DreamSettings, sizes: Sizes) -> dict[str, Any]:
    rollout = world.rollout(1, steps=settings.steps)
    return {
        **asdict(settings),
        "steps": rollout.steps,
        **asdict(sizes),
        "dtype": str(world.dtype).removeprefix("torch."),
        "device": world.device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
