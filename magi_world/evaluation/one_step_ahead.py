"""Does the world know an end or a hit when it dreams it? Judged one chunk ahead of reality."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from magi_world.errors import ConfigError, DatasetError
from magi_world.evaluation.clips import Episode, played
from magi_world.evaluation.dreaming import (
    DreamSettings,
    encode_chunks,
    new_rollout,
    prompts_of,
    start,
)
from magi_world.evaluation.metrics import auc, blocks, calibration
from magi_world.world import World

EDGES = (0.0, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)
"""bins of the calibration table; ends are rare, so they grow geometrically"""

SEED_STRIDE = 1_000_003
"""keeps the noise of different positions apart: `observe` draws nothing, so a plain fork would
dream every position of a slot with the same noise"""
DRAW_STRIDE = 7_919
"""keeps the noise of different draws of one position apart"""


@dataclass(frozen=True, kw_only=True)
class OneStepAhead:
    """One entry a position: chunk `age` of an episode, dreamed from the real chunks before it."""

    probability: npt.NDArray[np.float64]
    """that the dreamed chunk ends the episode; where there are several draws, the first of them"""
    expected: npt.NDArray[np.float64]
    """the mean of that over all draws of the chunk"""
    observed: npt.NDArray[np.float64]
    """the same head's answer when it is given the real chunk instead"""
    terminal: npt.NDArray[np.bool_]
    """whether the real chunk did end it"""
    age: npt.NDArray[np.int64]
    """chunks since the reset"""
    damage: npt.NDArray[np.float64]
    """health that the dreamed chunk costs, a share of 100; NaN if the world has no such signal"""
    lost: npt.NDArray[np.float64]
    """health that the real chunk did cost; NaN where the data does not know"""
    reward: npt.NDArray[np.float64]
    """`[n, R]`: what the dreamed chunk pays, a column for every player or a single one"""
    paid: npt.NDArray[np.float64]
    """`[n, R]`: what the real chunk did pay"""


def one_step_ahead(
    world: World,
    episodes: Sequence[Episode],
    settings: DreamSettings,
    *,
    draws: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> OneStepAhead:
    """Dream every chunk of every episode, from the real chunks before it and its real action.

    Each is dreamed `draws` times with noise of its own: one draw is one of the futures that may
    come, and only their mean says how likely an end is. Episodes of similar length walk in one
    batch; one that is over rides along unread, so that all forwards have one width.

    Raises:
        DatasetError: there are no episodes.
        ConfigError: `draws` is not 1 or more.
    """
    if not episodes:
        raise DatasetError("there are no episodes to look ahead in")
    if draws < 1:
        raise ConfigError(f"draws {draws}: a whole number, 1 or more, is needed")
    ordered = sorted(episodes, key=lambda episode: len(episode.frames))
    width = min(settings.batch_size, len(ordered))
    parts: list[OneStepAhead] = []
    for rows in blocks(len(ordered), width):
        batch = [ordered[(rows.start + slot) % len(ordered)] for slot in range(width)]
        kept = rows.stop - rows.start
        parts += _walk(world, batch, kept, settings, rows.start, draws)
        say(f"termination: {rows.stop} of {len(ordered)} episodes")
    columns = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(OneStepAhead)
    }
    return OneStepAhead(**columns)


def health_lost(episode: Episode) -> npt.NDArray[np.float64]:
    """Health that each chunk cost, as a share of 100, float64 `[n + 1]`; NaN where unknown."""
    if episode.health is None:
        return np.full(len(episode.frames), np.nan)
    health = np.asarray(episode.health, np.float64)
    return np.concatenate([[0.0], np.maximum(0.0, health[:-1] - health[1:]) / 100])


def _walk(
    world: World,
    batch: Sequence[Episode],
    kept: int,
    settings: DreamSettings,
    offset: int,
    draws: int,
) -> list[OneStepAhead]:
    names = prompts_of(world)
    latents = [encode_chunks(world, episode.frames) for episode in batch]
    actions = [played(episode) for episode in batch]
    lasts = np.array([len(episode.frames) - 1 for episode in batch])
    deaths = np.array([episode.terminated for episode in batch])
    losses = [health_lost(episode) for episode in batch]
    seeds = [settings.seed + offset + slot for slot in range(len(batch))]
    rollout = new_rollout(world, settings, seeds)
    start(rollout, np.stack([episode.frames[0] for episode in batch]), [names[0]] * len(batch))
    slots = list(range(len(batch)))
    parts = []
    for age in range(1, int(lasts[:kept].max()) + 1):
        here = np.minimum(age, lasts)
        prompts = [names[action[k]] for action, k in zip(actions, here, strict=True)]
        own_seeds = [
            seed + SEED_STRIDE * age + DRAW_STRIDE * draw for draw in range(draws) for seed in seeds
        ]
        ahead = rollout.fork(slots * draws, own_seeds).step(prompts * draws)
        real = torch.stack([latent[k] for latent, k in zip(latents, here, strict=True)])
        seen = rollout.observe(real, prompts)
        live = np.flatnonzero(lasts[:kept] >= age)
        ends_DN = ahead.termination_probability.double().cpu().numpy().reshape(draws, len(batch))
        unknown = torch.full_like(ahead.termination_probability, torch.nan)
        damage = ahead.signals.get("damage", unknown)[: len(batch)]
        reward = ahead.reward[: len(batch)]
        parts.append(
            OneStepAhead(
                probability=ends_DN[0, live],
                expected=ends_DN[:, live].mean(axis=0),
                observed=seen.termination_probability.double().cpu().numpy()[live],
                terminal=((lasts == age) & deaths)[live],
                age=np.full(len(live), age),
                damage=damage.double().cpu().numpy()[live],
                lost=np.array([losses[slot][age] for slot in live], np.float64),
                reward=reward.double().cpu().numpy().reshape(len(batch), -1)[live],
                paid=np.array(
                    [np.atleast_1d(batch[slot].rewards[age - 1]) for slot in live.tolist()],
                    np.float64,
                ).reshape(len(live), -1),
            )
        )
    return parts


def measure_termination(ahead: OneStepAhead, draws: int = 1) -> dict[str, Any]:
    """AUC on dreamed chunks, beside yardsticks of the same run, and the calibration table.

    `auc` ranks by one dream of each chunk, `auc_expected` by the mean of all its `draws`: a single
    future of several that may come cannot rank better than what is likely. `auc_age` ranks by the
    episode's age alone. `auc_observed` gives the head the real chunk, whose padding at the end
    shows the death: it bounds the head, it is no result of the dream.
    """
    return {
        "n": len(ahead.terminal),
        "unit": "chunks",
        "terminal": int(ahead.terminal.sum()),
        "auc": auc(ahead.probability, ahead.terminal),
        "auc_expected": auc(ahead.expected, ahead.terminal),
        "draws": draws,
        "auc_age": auc(ahead.age.astype(np.float64), ahead.terminal),
        "auc_observed": auc(ahead.observed, ahead.terminal),
        "mean_predicted": float(ahead.probability.mean()),
        "mean_observed": float(ahead.terminal.mean()),
        "calibration": calibration(ahead.probability, ahead.terminal, EDGES),
    }


def measure_damage(ahead: OneStepAhead) -> dict[str, Any] | None:
    """How well the damage signal tells hits from misses; None if world or data has no damage."""
    known = np.isfinite(ahead.damage) & np.isfinite(ahead.lost)
    if not known.any():
        return None
    damage, lost = ahead.damage[known], ahead.lost[known]
    return {
        "n": len(lost),
        "unit": "chunks",
        "hits": int((lost > 0).sum()),
        "auc": auc(damage, lost > 0),
        "auc_age": auc(ahead.age[known].astype(np.float64), lost > 0),
        "mean_predicted": float(damage.mean()),
        "mean_observed": float(lost.mean()),
    }


def measure_points(ahead: OneStepAhead, players: Sequence[str]) -> dict[str, Any] | None:
    """How much of the points that each player won and lost the heads see; None without players.

    For each player: `won` and `lost`, chunks in which the game paid it more or less than nothing;
    `won_seen` and `lost_seen`, the dreamed reward over the real one on these; `elsewhere`, the mean
    size of the dreamed reward on all other chunks.
    """
    if not players:
        return None
    rows: dict[str, Any] = {}
    for column, player in enumerate(players):
        reward, paid = ahead.reward[:, column], ahead.paid[:, column]
        row: dict[str, Any] = {}
        for name, those in (("won", paid > 0), ("lost", paid < 0)):
            seen = float(reward[those].sum() / paid[those].sum()) if those.any() else None
            row |= {name: int(those.sum()), f"{name}_seen": seen}
        nothing = paid == 0
        row["elsewhere"] = float(np.abs(reward[nothing]).mean()) if nothing.any() else None
        rows[player] = row
    return {"n": len(ahead.paid), "unit": "chunks", "players": rows}
