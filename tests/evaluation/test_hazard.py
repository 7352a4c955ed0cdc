"""Hazard by depth: what is counted, and what a dream that is too safe looks like."""

import numpy as np
import pytest
import torch

from magi_world.errors import DatasetError
from magi_world.evaluation.dreaming import DreamSettings
from magi_world.evaluation.hazard import (
    Depths,
    draw_histories,
    dream_on,
    measure_hazard,
    moving_masks,
)
from magi_world.evaluation.spots import BRIGHT, NAMES
from magi_world.training.episodes import EpisodeData
from magi_world.world import World


def test_places_are_drawn_once(episodes: list[EpisodeData]) -> None:
    every = draw_histories(episodes[:2], 10_000, seed=0)
    assert len(every) == len(set(every)) == sum(len(e.actions) for e in episodes[:2])
    assert all(1 <= chunk < len(episodes[index].frames) for index, chunk in every)
    assert draw_histories(episodes[:2], 5, seed=3) == draw_histories(episodes[:2], 5, seed=3)
    with pytest.raises(DatasetError, match="no held-out chunks"):
        draw_histories([], 5, seed=0)


def test_a_history_is_what_the_cache_holds(tiny_world: World, episodes: list[EpisodeData]) -> None:
    episode, chunk = episodes[0], 9
    # two places in batches of two, the third is filled up
    places = [(0, chunk), (1, 1), (1, 20)]
    settings = DreamSettings(batch_size=2, seed=4)
    depths = dream_on(tiny_world, episodes, places, settings, depth=3)
    assert depths.episode.tolist() == [0, 1, 1]

    prompts = [tiny_world.card["prompts"][action] for action in (0, *episode.actions)]
    holds = tiny_world.config.sampling.kv_range - 1
    rollout = tiny_world.rollout(1, seeds=[4])
    video = episode.frames[chunk - holds : chunk].reshape(-1, 64, 64, 3)
    rollout.reset(video=video, prompts=prompts[chunk - holds : chunk])
    for step in range(3):
        alone = rollout.step([prompts[chunk + step]])
        expected = float(alone.termination_probability)
        assert depths.predicted[0, step] == pytest.approx(expected, abs=1e-4)
        dreamed = moving_masks(alone.frames.numpy())
        assert depths.moving["dream"][0][0, step] == pytest.approx(dreamed[0].mean(), abs=0.05)
        real = moving_masks(episode.frames[chunk + step][None])
        assert depths.moving["real"][0][0, step] == real[0].mean()
        both = (dreamed[1] & real[1]).mean()
        assert depths.in_place["dream"][0, step] == pytest.approx(both, abs=0.05)
        found = depths.spots["dream"][0, step] <= depths.spots["real"][0, step]
        assert found.all()
        assert depths.in_place["vae"][0, step] <= depths.moving["real"][1][0, step]


def test_only_chunks_of_episodes_that_go_on_count(
    tiny_world: World, episodes: list[EpisodeData]
) -> None:
    ends = next(i for i, e in enumerate(episodes) if e.terminated)
    goes = next(i for i, e in enumerate(episodes) if not e.terminated)
    places = [(i, len(episodes[i].frames) - 2) for i in (ends, goes)]
    depths = dream_on(
        tiny_world, episodes, places, DreamSettings(batch_size=2), depth=4, pictures=False
    )
    assert np.isfinite(depths.predicted).tolist() == [[True, True, False, False]] * 2
    assert depths.ended[:, :2].tolist() == [[0, 1], [0, 0]]
    assert depths.lost[0, 1] == pytest.approx(0.7)
    assert np.isnan(depths.damage).all()  # the tiny world has no such signal
    table = measure_hazard(depths)
    assert list(table["depths"]) == ["1", "2", "3-4", "1-4"]
    assert [row["n"] for row in table["depths"].values()] == [2, 2, 0, 4]
    assert table["depths"]["2"]["ends"]["events"] == 1
    assert table["depths"]["3-4"]["ends"] is None
    assert table["depths"]["1"]["damage"] is None and "moving" not in table["depths"]["1"]


def test_the_last_chunk_of_an_episode_has_no_pixels_of_its_own(
    tiny_world: World, episodes: list[EpisodeData]
) -> None:
    ends = next(i for i, e in enumerate(episodes) if e.terminated)
    last = len(episodes[ends].frames) - 1
    said: list[str] = []
    depths = dream_on(
        tiny_world, episodes, [(ends, last)], DreamSettings(), depth=1, say=said.append
    )
    assert np.isfinite(depths.predicted).all()
    assert all(np.isnan(pair[0]).all() for pair in depths.moving.values())
    assert said == ["hazard by depth: 1 of 1 histories"]


def test_a_dream_that_is_too_safe_shows_it() -> None:
    n, depth = 40, 20
    ended = np.zeros((n, depth))
    ended[::4, 4] = 1
    predicted = np.where(np.arange(depth) < 4, 0.0125, 0.0125 / 2) * np.ones((n, 1))
    predicted[:, 5:] = np.nan
    ended[:, 5:] = np.nan
    pair = (np.full((n, depth), 0.2), np.full((n, depth), 0.02))
    faded = (pair[0] / 2, pair[1] / 4)
    spots = np.zeros((n, depth, len(NAMES)))
    spots[..., 0] = 2
    table = measure_hazard(
        Depths(
            episode=np.arange(n) // 2,
            predicted=predicted,
            ended=ended,
            damage=0.5 * ended,
            lost=ended,
            moving={"real": pair, "vae": pair, "dream": faded},
            in_place={"vae": 0.9 * pair[1], "dream": np.linspace(1, 0, depth) * pair[1]},
            spots={"real": spots, "vae": spots, "dream": spots * [0.5, 1, 1, 1, 1]},
        )
    )
    assert (table["histories"], table["episodes"]) == (40, 20)
    rows = table["depths"]
    assert rows["1"]["ends"]["predicted"] == pytest.approx(0.5)
    assert rows["1"]["ends"]["ratio"] is None  # nothing happened there
    assert rows["5-8"]["ends"]["happened"] == rows["5-8"]["ends"]["events"] == 10
    assert rows["5-8"]["ends"]["ratio"] == pytest.approx(0.025)
    assert rows["1-20"]["n"] == 200
    assert rows["1-20"]["damage"]["ratio"] == pytest.approx(0.5)
    assert rows["1-20"]["damage"]["ratio_interval"] == pytest.approx([0.5, 0.5])
    small = rows["3-4"]["spots"]["1-3"]
    assert (small["n"], small["vae"], small["ratio"]) == (160, 1.0, 0.5)
    assert small["ratio_interval"] == pytest.approx([0.5, 0.5])
    assert rows["3-4"]["spots"]["4-8"]["n"] == 0
    low, high = rows["1-20"]["ends"]["ratio_interval"]
    assert low < rows["1-20"]["ends"]["ratio"] < high
    assert rows["9-12"]["moving"]["ratio"] == pytest.approx(0.5)
    assert rows["9-12"]["bright_moving"]["dream"] == pytest.approx(0.005)
    assert rows["1"]["bright_in_place"]["ratio"] == pytest.approx(1.0)
    assert rows["1-20"]["bright_in_place"]["ratio"] == pytest.approx(0.5)
    assert rows["1-20"]["bright_in_place"]["vae"] == pytest.approx(0.9)


def test_bright_pixels_are_those_that_reach_a_level() -> None:
    chunks = np.zeros((1, 4, 10, 10, 3), np.uint8)
    chunks[0, 2, :5] = 60  # half of the picture moves
    chunks[0, 2, 0, :, 1] = BRIGHT  # a tenth of it is bright while it moves
    chunks[0, :, 9] = 255  # bright, and always there
    moving, bright = moving_masks(chunks)
    assert moving.mean(axis=(1, 2)).tolist() == [0.5] and bright.mean(axis=(1, 2)).tolist() == [0.1]


def test_a_range_of_one_is_given_one_chunk(tiny_world: World, episodes: list[EpisodeData]) -> None:
    from magi_world.evaluation.variants import with_sampling

    short = with_sampling(tiny_world, kv_range=1)
    depths = dream_on(short, episodes, [(0, 5)], DreamSettings(seed=2), depth=1, pictures=False)
    rollout = short.rollout(1, seeds=[2])
    prompts = [short.card["prompts"][action] for action in (0, *episodes[0].actions)]
    rollout.reset(video=torch.from_numpy(episodes[0].frames[4]), prompts=[prompts[4]])
    expected = float(rollout.step([prompts[5]]).termination_probability)
    assert depths.predicted[0, 0] == pytest.approx(expected, abs=1e-5)
