"""One world under other settings: the tables of KV ranges and of denoising steps."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from magi_world.config import WorldConfig
from magi_world.errors import ConfigError
from magi_world.evaluation.bench import bench_slots
from magi_world.evaluation.clips import Episode, cut_clips
from magi_world.evaluation.dreaming import DreamSettings, dream
from magi_world.evaluation.hazard import DEPTH, draw_histories, dream_on, measure_hazard
from magi_world.evaluation.motion import CONTEXT
from magi_world.evaluation.one_step_ahead import measure_termination, one_step_ahead
from magi_world.evaluation.prediction import HORIZONS, measure_prediction
from magi_world.evaluation.sizes import Sizes
from magi_world.world import World

Say = Callable[[str], None]

TIMED_CHUNKS = 40


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Settings of which each gets a row in a table; empty ones make no table."""

    kv_ranges: Sequence[int] = ()
    step_counts: Sequence[int] = ()


def with_sampling(world: World, **changes: Any) -> World:
    """The same world under other values of its configuration's section `sampling`.

    It shares its weights with `world`; card and configuration are its own. Only `kv_range` and
    `num_steps` can change: the weights and the captions do not depend on them.

    Raises:
        ConfigError: another key, or a value that cannot work.
    """
    foreign = sorted(set(changes) - {"kv_range", "num_steps"})
    if foreign:
        raise ConfigError(f"sampling {foreign}: only kv_range and num_steps can be changed")
    config = world.card["config"]
    other = copy.copy(world)
    other.card = {
        **world.card,
        "config": {**config, "sampling": {**config.get("sampling", {}), **changes}},
    }
    other.config = WorldConfig.from_dict(other.card["config"])
    return other


def prefix_of(kv_ranges: Sequence[int], prefix: int) -> int:
    """Real chunks that clips must give so that the longest range finds its cache full."""
    return max(prefix, CONTEXT, *(kv_range - 1 for kv_range in kv_ranges))


def measure_kv_ranges(
    world: World,
    held_out: Sequence[Episode],
    kv_ranges: Sequence[int],
    settings: DreamSettings,
    *,
    clips: int,
    prefix: int,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Open-loop PSNR and termination AUC of one world for several KV ranges.

    All ranges dream the same clips, cut behind a prefix that fills the longest cache, under the
    same noise. Where the world was trained at its own range only (`trained_at`), other ranges show
    what it does there, not the best that it could be trained to; where its recipe had
    `most_kv_range`, DiT and outcome heads were trained at all up to that. In `rows` each has its
    own n.

    Raises:
        DatasetError: no episode is long enough for the longest range.
    """
    given = prefix_of(kv_ranges, prefix)
    cut = cut_clips(held_out, clips, prefix=given, horizon=max(HORIZONS), seed=settings.seed)
    rows = []
    for kv_range in kv_ranges:
        variant = with_sampling(world, kv_range=kv_range)
        dreamed = dream(variant, cut, cut.actions[:, given:], settings)
        ahead = measure_termination(one_step_ahead(variant, held_out, settings))
        rows.append(
            {
                "kv_range": kv_range,
                **_psnr_columns(measure_prediction(variant, cut, dreamed[:, CONTEXT:])),
                **_auc_columns(ahead),
            }
        )
        say(f"KV range {kv_range} measured")
    own = world.config.sampling.kv_range
    most = world.card.get("training", {}).get("most_kv_range", 0)
    return {
        "trained_at": [1 << i for i in range(most.bit_length())] or [own],
        "prefix_chunks": given,
        "rows": rows,
    }


def measure_step_counts(
    world: World,
    held_out: Sequence[Episode],
    step_counts: Sequence[int],
    settings: DreamSettings,
    *,
    clips: int,
    prefix: int,
    histories: int,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Open-loop PSNR, termination AUC, hazard ratio and speed for several numbers of steps.

    `hazard_ratio` is that of the ends predicted over all depths of `hazard.measure_hazard` to those
    that happened. `frames_per_s` is one slot with frames, `agent_steps_per_s` a rollout as wide as
    the settings' batch with latents only, both timed in this run over `TIMED_CHUNKS` chunks.
    """
    cut = cut_clips(held_out, clips, prefix=prefix, horizon=max(HORIZONS), seed=settings.seed)
    places = draw_histories(held_out, histories, settings.seed)
    rows = []
    for steps in step_counts:
        variant = with_sampling(world, num_steps=steps)
        own = DreamSettings(
            batch_size=settings.batch_size, temperature=settings.temperature, seed=settings.seed
        )
        dreamed = dream(variant, cut, cut.actions[:, prefix:], own)
        ahead = measure_termination(one_step_ahead(variant, held_out, own))
        depths = dream_on(variant, held_out, places, own, pictures=False)
        ends = measure_hazard(depths)["depths"][f"1-{DEPTH}"]["ends"]
        one, many = (
            bench_slots(lambda: variant, width, chunks=TIMED_CHUNKS)  # noqa: B023
            for width in (1, settings.batch_size)
        )
        rows.append(
            {
                "steps": steps,
                **_psnr_columns(measure_prediction(variant, cut, dreamed[:, CONTEXT:])),
                **_auc_columns(ahead),
                "hazard_ratio": ends["ratio"],
                "hazard_low": ends["ratio_interval"][0],
                "hazard_high": ends["ratio_interval"][1],
                "hazard_ends": ends["events"],
                "hazard_n": ends["n"],
                "frames_per_s": one["frames_per_s"],
                "agent_steps_per_s": many["agent_steps_per_s"],
            }
        )
        say(f"{steps} denoising steps measured")
    return {
        "own_steps": world.config.sampling.num_steps,
        "wide": settings.batch_size,
        "histories": len(places),
        "rows": rows,
    }


def _psnr_columns(prediction: dict[str, Any]) -> dict[str, Any]:
    psnr = {f"psnr_{at}": row["dream"] for at, row in prediction["psnr_at"].items()}
    return {**psnr, "clips": prediction["n"]}


def _auc_columns(ahead: dict[str, Any]) -> dict[str, Any]:
    return {"auc": ahead["auc"], "ends": ahead["terminal"], "chunks": ahead["n"]}


def measure_tables(
    world: World,
    held_out: Sequence[Episode],
    tables: Tables,
    settings: DreamSettings,
    sizes: Sizes,
    say: Say,
) -> dict[str, Any]:
    """The tables asked for, by the names that they have in report and card."""
    result: dict[str, Any] = {}
    common: dict[str, Any] = {"clips": sizes.clips, "prefix": sizes.prefix, "say": say}
    if tables.kv_ranges:
        result["kv_ranges"] = measure_kv_ranges(
            world, held_out, tables.kv_ranges, settings, **common
        )
    if tables.step_counts:
        result["denoising_steps"] = measure_step_counts(
            world, held_out, tables.step_counts, settings, histories=sizes.histories, **common
        )
    return result


def check_tables(held_out: Sequence[Episode], tables: Tables, sizes: Sizes) -> None:
    """Fail before anything is measured if the tables cannot be.

    Raises:
        DatasetError: the episodes are too short for the tables' clips.
        ConfigError: a KV range or a number of steps below 1.
    """
    for name, values in (("KV range", tables.kv_ranges), ("steps", tables.step_counts)):
        if min(values, default=1) < 1:
            raise ConfigError(f"{name} {list(values)}: whole numbers, 1 or more, are needed")
    prefix = prefix_of(tables.kv_ranges, sizes.prefix)
    cut_clips(held_out, 1, prefix=prefix, horizon=max(HORIZONS), seed=0)
