"""The report on a world: all measures in one run, `report.json`, strips, numbers for the card."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from magi_world.checkpoints.world_format import read_card, write_card
from magi_world.errors import DatasetError
from magi_world.evaluation.clips import (
    Clips,
    Episode,
    cut_clips,
    played,
    whole_chunks,
)
from magi_world.evaluation.dreaming import (
    DreamSettings,
    dream,
    prompts_of,
    through_vae,
)
from magi_world.evaluation.inverse_model import InverseModel, train
from magi_world.evaluation.lengths import Lengths, Play, choose_sweep, measure_lengths
from magi_world.evaluation.metrics import Frames
from magi_world.evaluation.motion import CONTEXT, Moments, episode_moments, join_moments, moments_of
from magi_world.evaluation.one_step_ahead import (
    measure_damage,
    measure_termination,
    one_step_ahead,
)
from magi_world.evaluation.patch_pca import PatchPCA
from magi_world.evaluation.prediction import HORIZONS, measure_prediction
from magi_world.evaluation.prompt_effect import measure_drawn_actions, measure_real_actions
from magi_world.evaluation.reconstruction import measure_reconstruction, patch_shape
from magi_world.evaluation.strips import strip, write_png
from magi_world.world import World

Say = Callable[[str], None]

BULKY = frozenset({"phrases", "calibration", "confusion", "by_chunk"})
"""tables that stay in the report and out of the card"""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything is measured; the defaults take about ten minutes on two cores."""

    held_out_episodes: int = 96
    training_chunks: int = 12_000
    """real chunks, of training episodes, for the PCA and the inverse model"""
    reconstruction_chunks: int = 2000
    clips: int = 256
    """clips for open-loop prediction under the real actions"""
    prefix: int = 8
    """real chunks given before a dream, at least 2"""
    drawn_clips: int = 128
    """clips driven by drawn actions, once for each wording"""
    drawn_horizon: int = 8
    drawn_hold: int = 4
    """chunks for which a drawn action is held"""
    inverse_epochs: int = 15
    strips: int = 6
    sweep_episodes: int = 100


@dataclass(frozen=True, kw_only=True)
class Game:
    """What the measures need of the real game, as callables; absent ones skip their measure."""

    lengths: Mapping[str, tuple[Lengths, Lengths]] = field(default_factory=dict)
    play_sweep: Play | None = None


def evaluate_world(
    world: World,
    episodes: Iterable[Episode],
    is_held_out: Callable[[int], bool],
    out: str | Path,
    *,
    settings: DreamSettings | None = None,
    sizes: Sizes | None = None,
    game: Game | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Run every measure, write `out/report.json` and `out/strip_*.png`, return the report.

    `episodes` is read once and only as far as needed; `is_held_out(seed)` says which of them the
    world never saw. The report is plain data; numbers that do not exist are null.

    Raises:
        DatasetError: too few held-out or training episodes.
    """
    settings = settings or DreamSettings()
    sizes = sizes or Sizes()
    game = game or Game()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)

    held_out, pca, training_moments = read(world, episodes, is_held_out, sizes, say)
    say(f"{len(held_out)} held-out episodes, {len(training_moments)} training moments")
    report: dict[str, Any] = {"world": world.name, "setting": _setting(world, settings, sizes)}
    report["held_out"] = {
        "episodes": len(held_out),
        "chunks": sum(len(episode.frames) for episode in held_out),
    }

    report["reconstruction"] = measure_reconstruction(
        world, held_out, pca, count=sizes.reconstruction_chunks, seed=settings.seed
    )
    say(f"VAE {report['reconstruction']['vae']['psnr']:.2f} dB")

    clips = cut_clips(
        held_out, sizes.clips, prefix=sizes.prefix, horizon=max(HORIZONS), seed=settings.seed
    )
    dreamed = dream(world, clips, clips.actions[:, clips.prefix :], settings)
    report["prediction"] = measure_prediction(world, clips, dreamed[:, CONTEXT:])
    say(f"open-loop prediction of {len(clips)} clips measured")
    write_strips(out, clips, dreamed[:, CONTEXT:], sizes.strips)

    ahead = one_step_ahead(world, held_out, settings, say=say)
    report["termination"] = measure_termination(ahead)
    report["damage"] = measure_damage(ahead)

    model = train(
        training_moments,
        len(prompts_of(world)),
        epochs=sizes.inverse_epochs,
        seed=settings.seed,
        say=say,
    )
    report["prompt_effect"] = _prompt_effect(
        world, model, clips, dreamed, held_out, len(training_moments), settings, sizes, say
    )

    if game.lengths:
        report["lengths"] = measure_lengths(game.lengths)
    if game.play_sweep is not None:
        best, sweeps = choose_sweep(game.play_sweep, episodes=sizes.sweep_episodes, say=say)
        report["sweep_period"] = best
        report["sweeps"] = sweeps

    report = finite(report)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    return report


def read(
    world: World,
    episodes: Iterable[Episode],
    is_held_out: Callable[[int], bool],
    sizes: Sizes,
    say: Say,
) -> tuple[list[Episode], PatchPCA, Moments]:
    """Go through the episodes once: keep the held-out ones, fit the PCA, cut moments from the rest.

    Moments come in two views: the real pictures, and the same through the world's VAE. Of the
    training episodes only they stay in memory.
    """
    held_out: list[Episode] = []
    moments: list[Moments] = []
    pca = PatchPCA(patch_shape(world))
    num_training = 0
    for episode in episodes:
        if is_held_out(episode.seed):
            if len(held_out) < sizes.held_out_episodes:
                held_out.append(episode)
        elif num_training < sizes.training_chunks:
            chunks = episode.frames[: whole_chunks(episode)]
            if len(chunks):
                pca.add(chunks[:: max(1, len(chunks) // 32)])
            if len(chunks) > CONTEXT:
                actions = played(episode)[: len(chunks)]
                views = (chunks, through_vae(world, chunks))
                moments += [moments_of(view, actions) for view in views]
            if (num_training + len(chunks)) // 2000 > num_training // 2000:
                say(f"{num_training + len(chunks)} training chunks coded")
            num_training += len(chunks)
        if len(held_out) >= sizes.held_out_episodes and num_training >= sizes.training_chunks:
            break
    if not held_out or not num_training:
        raise DatasetError(
            f"the data has {len(held_out)} held-out episodes and {num_training} training chunks; "
            "both are needed"
        )
    return held_out, pca, join_moments(moments)


def _prompt_effect(
    world: World,
    model: InverseModel,
    clips: Clips,
    dreamed: Frames,
    held_out: Sequence[Episode],
    num_training: int,
    settings: DreamSettings,
    sizes: Sizes,
    say: Say,
) -> dict[str, Any]:
    held_out_moments = join_moments(
        part for episode in held_out for part in episode_moments(episode)
    )
    result = {
        "unit": "chunks",
        "training_moments": num_training,
        **measure_real_actions(world, model, clips, dreamed, held_out_moments),
    }
    drawn = measure_drawn_actions(
        world,
        model,
        clips[: sizes.drawn_clips],
        settings,
        horizon=sizes.drawn_horizon,
        hold=sizes.drawn_hold,
        say=say,
    )
    return {**result, "drawn_actions": drawn}


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


def write_strips(out: Path, clips: Clips, dreamed: Frames, count: int) -> list[Path]:
    """Write PNGs of the first clips: the last frame of every real chunk above the dreamed one."""
    paths = []
    for index in range(min(count, len(clips))):
        rows: list[tuple[str, Frames]] = [
            (
                f"real: {clips.horizon} chunks after a prefix of {clips.prefix}",
                clips.frames[index, clips.prefix :, -1],
            ),
            ("dream: same prefix and actions, open loop", dreamed[index, :, -1]),
        ]
        path = out / f"strip_{index}.png"
        write_png(path, strip(rows))
        paths.append(path)
    return paths


def finite(value: Any) -> Any:
    """Plain data that JSON can hold: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def card_entries(report: Mapping[str, Any]) -> dict[str, Any]:
    """What of a report goes into the card: its numbers without the long tables.

    The sweep's period and means get keys of their own; a report without them leaves the card's.
    """
    numbers = _without(report, BULKY | {"sweep_period", "sweeps", "world"})
    own = {key: report[key] for key in ("sweep_period", "sweeps") if key in report}
    return {"evaluation": numbers, **own}


def _without(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(entry, names) for key, entry in value.items() if key not in names}
    return value


def update_card(world: World, entries: Mapping[str, Any]) -> None:
    """Put entries into the card of a world and into its file, keeping every other key.

    The file is read again and replaced in one move. A world without a folder keeps them in memory.

    Raises:
        OSError: the folder cannot be written.
    """
    if world.folder is not None:
        write_card(world.folder, {**read_card(world.folder), **entries})
    world.card.update(entries)
