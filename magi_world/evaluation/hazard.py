"""Does a dream stay as dangerous as the game? Deaths, hits and fireballs by how deep it dreams.

From random real histories the world dreams on, open loop, under the actions that were really
played. At every depth the predicted ends and hits are summed and stand beside those that happened.
A dream in which fireballs fade away is too safe: its sums fall behind, and so does the share of its
pixels that move, above all of the bright ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from magi_world.errors import DatasetError
from magi_world.evaluation.clips import Episode, Integers, played, whole_chunks
from magi_world.evaluation.dreaming import DreamSettings, new_rollout, prompts_of, through_vae
from magi_world.evaluation.metrics import Frames, Mask, blocks, moving_pixels, ratio_interval
from magi_world.evaluation.one_step_ahead import health_lost
from magi_world.evaluation.reconstruction import MOVING_THRESHOLD
from magi_world.evaluation.spots import BRIGHT, NAMES, count_spots
from magi_world.sampling.rollout import Rollout
from magi_world.world import World

Array = npt.NDArray[np.float64]

DEPTH = 20
"""chunks dreamed from each history"""
BINS = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 12), (13, 20))
"""first and last depth of each row, counted from 1"""


@dataclass(frozen=True, kw_only=True)
class Depths:
    """One row a history, one column a depth; what no longer existed in the game is NaN."""

    episode: Integers
    """int64 `[n]`: which episode each history is from"""
    predicted: Array
    """float64 `[n, DEPTH]`: probability that the dreamed chunk ends the episode"""
    ended: Array
    """whether the real chunk ended it, 0 or 1"""
    damage: Array
    """the dreamed chunk's damage signal; NaN also if the world has none"""
    lost: Array
    """health that the real chunk cost, a share of 100; NaN also where the data does not know"""
    moving: dict[str, tuple[Array, Array]]
    """shares of moving and of bright moving pixels, in `real`, `vae` and `dream`; NaN also in a
    last chunk that is not whole"""
    in_place: dict[str, Array] = field(default_factory=dict)
    """shares of the pixels that are bright and move in the real chunk and in `vae` or `dream`"""
    spots: dict[str, Array] = field(default_factory=dict)
    """bright spots of the real chunk's last picture by size, and how many of them `vae` and `dream`
    have, `[n, DEPTH, K]`, see `spots.py`"""


def draw_histories(episodes: Sequence[Episode], count: int, seed: int) -> list[tuple[int, int]]:
    """Up to `count` places (episode, chunk) to dream on from, none twice, chunk 1 or later.

    Raises:
        DatasetError: there is no such place.
    """
    places = [
        (index, chunk)
        for index, episode in enumerate(episodes)
        for chunk in range(1, len(episode.frames))
    ]
    if not places:
        raise DatasetError("there are no held-out chunks to dream on from")
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(places), size=min(count, len(places)), replace=False)
    return [places[place] for place in chosen.tolist()]


def dream_on(
    world: World,
    episodes: Sequence[Episode],
    histories: Sequence[tuple[int, int]],
    settings: DreamSettings,
    *,
    depth: int = DEPTH,
    pictures: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Depths:
    """Dream `depth` chunks from every history, given as many real chunks as the cache holds.

    A history near an episode's beginning is given what there is of it. Without `pictures` nothing
    is decoded and the shares of moving pixels are missing.
    """
    shape = (len(histories), depth)
    columns = {name: np.full(shape, np.nan) for name in ("predicted", "ended", "damage", "lost")}
    names = ("real", "vae", "dream") if pictures else ()
    moving = {name: (np.full(shape, np.nan), np.full(shape, np.nan)) for name in names}
    in_place = {name: np.full(shape, np.nan) for name in names if name != "real"}
    spots = {name: np.full((*shape, len(NAMES)), np.nan) for name in names}
    known = [(played(episode), health_lost(episode), whole_chunks(episode)) for episode in episodes]
    prompts = prompts_of(world)
    width = min(settings.batch_size, len(histories))
    for rows in blocks(len(histories), width):
        # a short last batch is filled up with its own, so that every forward has the same width
        taken = [histories[(rows.start + slot) % len(histories)] for slot in range(width)]
        kept = rows.stop - rows.start
        seeds = [settings.seed + rows.start + slot for slot in range(width)]
        rollout = new_rollout(world, settings, seeds)
        give_history(world, rollout, episodes, taken, [known[index][0] for index, _ in taken])
        for step in range(depth):
            here = [(index, chunk + step) for index, chunk in taken]
            # an episode that is over rides along under its last action, unread
            said = [prompts[known[i][0][min(at, len(known[i][0]) - 1)]] for i, at in here]
            chunk = rollout.step(said)
            probability = chunk.termination_probability.double().cpu().numpy()
            damage = chunk.signals.get("damage")
            live = [slot for slot in range(kept) if here[slot][1] < len(known[here[slot][0]][0])]
            for slot in live:
                index, at = here[slot]
                row = rows.start + slot
                last = at == len(episodes[index].frames) - 1
                columns["predicted"][row, step] = probability[slot]
                columns["ended"][row, step] = last and episodes[index].terminated
                columns["lost"][row, step] = known[index][1][at]
                if damage is not None:
                    columns["damage"][row, step] = float(damage[slot])
            whole = [slot for slot in live if here[slot][1] < known[here[slot][0]][2]]
            if pictures and whole:
                real = np.stack([episodes[here[slot][0]].frames[here[slot][1]] for slot in whole])
                dreamed = chunk.frames.cpu().numpy()[whole]
                at_rows = [rows.start + slot for slot in whole]
                views = {"real": real, "vae": through_vae(world, real), "dream": dreamed}
                masks = {name: moving_masks(frames) for name, frames in views.items()}
                for name, (moves, bright) in masks.items():
                    moving[name][0][at_rows, step] = moves.mean(axis=(1, 2))
                    moving[name][1][at_rows, step] = bright.mean(axis=(1, 2))
                for name, shares in in_place.items():
                    both = masks[name][1] & masks["real"][1]
                    shares[at_rows, step] = both.mean(axis=(1, 2))
                for at, *pictures_HWC in zip(
                    at_rows, *(v[:, -1] for v in views.values()), strict=True
                ):
                    for name, counts in zip(views, count_spots(*pictures_HWC), strict=True):
                        spots[name][at, step] = counts
        say(f"hazard by depth: {rows.stop} of {len(histories)} histories")
    owner = np.array([index for index, _ in histories], np.int64)
    return Depths(episode=owner, moving=moving, in_place=in_place, spots=spots, **columns)


def give_history(
    world: World,
    rollout: Rollout,
    episodes: Sequence[Episode],
    taken: Sequence[tuple[int, int]],
    actions: Sequence[Integers],
) -> None:
    """Reset every slot to the last real chunks before its place, as many as the cache holds.

    `taken` are places (episode, chunk), one a slot, `actions` what :func:`played` says of each.
    """
    prompts = prompts_of(world)
    holds = max(1, world.config.sampling.kv_range - 1)
    for slot, (index, chunk) in enumerate(taken):
        first = max(0, chunk - holds)
        given = np.ascontiguousarray(episodes[index].frames[first:chunk])
        video = torch.from_numpy(given.reshape(-1, *given.shape[2:]))
        said = [prompts[action] for action in actions[slot][first:chunk]]
        rollout.reset(slots=[slot], video=video, prompts=said)


def moving_masks(chunks: Frames) -> tuple[Mask, Mask]:
    """The pixels of each chunk that move, and that move and are bright: bool `[n, H, W]` twice.

    Takes uint8 `[n, F, H, W, 3]`. A pixel moves if it changes by more than `MOVING_THRESHOLD`
    within the chunk, as for the VAE's PSNR, and is bright if a colour of it reaches `BRIGHT`.
    """
    moving = moving_pixels(chunks, MOVING_THRESHOLD)[:, 0, :, :, 0]
    bright: Mask = chunks.max(axis=(1, 4)) >= BRIGHT
    return moving, moving & bright


def measure_hazard(depths: Depths) -> dict[str, Any]:
    """The table by depth: sums, their ratios with 95 % bootstrap intervals over episodes, counts.

    A row counts only chunks for which the real episode still went on. `ends` and `damage` hold the
    sum predicted in the dream, the sum that happened (`events` of the chunks) and their ratio:
    below 1 the dream is too safe. Damage is in players' whole health. `moving` and `bright_moving`
    hold mean shares of pixels, of real chunks, of the same through the VAE and of dreamed ones, and
    dream over real; `bright_in_place` the share of the real bright moving pixels that are so at the
    same place in the dream, with its interval, and through the VAE: a fireball that flies
    elsewhere is not in place. `spots` holds, by size in pixels, how many bright spots the last
    pictures of the real chunks had and which share of them the VAE and the dream have too. The last
    row is all depths together.
    """
    rows: dict[str, Any] = {}
    deepest = depths.predicted.shape[1]
    for first, last in (*BINS, (1, deepest)):
        if first > deepest:
            continue
        last = min(last, deepest)
        those = slice(first - 1, last)
        name = str(first) if first == last else f"{first}-{last}"
        own = depths.episode
        row: dict[str, Any] = {
            "n": int(np.isfinite(depths.predicted[:, those]).sum()),
            "ends": _sums(own, depths.predicted[:, those], depths.ended[:, those]),
            "damage": _sums(own, depths.damage[:, those], depths.lost[:, those]),
        }
        for kind, which in (("moving", 0), ("bright_moving", 1)):
            shares = {view: pair[which][:, those] for view, pair in depths.moving.items()}
            if shares and np.isfinite(shares["real"]).any():
                row[kind] = {
                    "n": int(np.isfinite(shares["real"]).sum()),
                    **{view: float(np.nanmean(values)) for view, values in shares.items()},
                    **_ratio(own, shares["dream"], shares["real"]),
                }
        placed = {view: shares[:, those] for view, shares in depths.in_place.items()}
        if placed and np.isfinite(placed["dream"]).any():
            real = depths.moving["real"][1][:, those]
            row["bright_in_place"] = {
                "vae": _ratio(own, placed["vae"], real)["ratio"],
                **_ratio(own, placed["dream"], real),
            }
        if depths.spots:
            counts = {view: table[:, those] for view, table in depths.spots.items()}
            row["spots"] = {kind: _found(own, counts, i) for i, kind in enumerate(NAMES)}
        rows[name] = row
    return {
        "unit": "chunks",
        "histories": len(depths.episode),
        "episodes": len(np.unique(depths.episode)),
        "moving_threshold": MOVING_THRESHOLD,
        "bright": BRIGHT,
        "depths": rows,
    }


def _found(episode: Integers, counts: dict[str, Array], kind: int) -> dict[str, Any]:
    real, vae, dream = (counts[view][..., kind] for view in ("real", "vae", "dream"))
    return {
        "n": int(np.nansum(real)),
        "vae": _ratio(episode, vae, real)["ratio"],
        **_ratio(episode, dream, real),
    }


def _sums(episode: Integers, predicted: Array, happened: Array) -> dict[str, Any] | None:
    known = np.isfinite(predicted) & np.isfinite(happened)
    if not known.any():
        return None
    predicted, happened = np.where(known, predicted, np.nan), np.where(known, happened, np.nan)
    return {
        "n": int(known.sum()),
        "predicted": float(np.nansum(predicted)),
        "happened": float(np.nansum(happened)),
        "events": int((happened > 0).sum()),
        **_ratio(episode, predicted, happened),
    }


def _ratio(episode: Integers, first: Array, second: Array) -> dict[str, Any]:
    """Sum over sum, and the interval from drawing whole episodes."""
    size = int(episode.max()) + 1
    ours, theirs = np.zeros((2, size))
    np.add.at(ours, episode, np.nansum(first, axis=1))
    np.add.at(theirs, episode, np.nansum(second, axis=1))
    present = np.unique(episode)
    ours, theirs = ours[present], theirs[present]
    total = float(theirs.sum())
    return {
        "ratio": float(ours.sum()) / total if total else None,
        "ratio_interval": list(ratio_interval(ours, theirs, paired=True)),
    }
