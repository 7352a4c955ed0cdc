"""One world under other settings, and the tables that compare them."""

import pytest
import torch

from magi_world.errors import ConfigError, DatasetError
from magi_world.evaluation import variants
from magi_world.evaluation.dreaming import DreamSettings
from magi_world.evaluation.sizes import Sizes
from magi_world.evaluation.variants import (
    Tables,
    check_tables,
    measure_kv_ranges,
    measure_step_counts,
    measure_tables,
    with_sampling,
)
from magi_world.training.episodes import EpisodeData
from magi_world.world import World

SETTINGS = DreamSettings(batch_size=2, seed=1)


def test_a_variant_differs_in_its_sampling_only(tiny_world: World) -> None:
    other = with_sampling(tiny_world, kv_range=2, num_steps=3)
    assert other.config.sampling.kv_range == 2
    assert other.card["config"]["sampling"]["num_steps"] == 3
    assert tiny_world.config.sampling.kv_range == 4
    assert tiny_world.card["config"]["sampling"]["num_steps"] == 2
    assert other.dit is tiny_world.dit
    rollout = other.rollout(1, seeds=[0])
    assert rollout.steps == 3 and rollout.cache.places == 2
    rollout.reset()
    fewer = tiny_world.rollout(1, seeds=[0], steps=3)
    fewer.reset()
    # the opening is one chunk, so that two places hold all there is
    assert torch.equal(rollout.step(["strafe left"]).latents, fewer.step(["strafe left"]).latents)
    with pytest.raises(ConfigError, match="only kv_range"):
        with_sampling(tiny_world, scale_factor=2.0)
    with pytest.raises(ConfigError, match="kv_range 0"):
        with_sampling(tiny_world, kv_range=0)


def test_every_range_dreams_the_same_clips(tiny_world: World, episodes: list[EpisodeData]) -> None:
    said: list[str] = []
    table = measure_kv_ranges(
        tiny_world, episodes[:3], [1, 4, 6], SETTINGS, clips=2, prefix=2, say=said.append
    )
    assert (table["trained_at"], table["prefix_chunks"]) == ([4], 5)
    assert [row["kv_range"] for row in table["rows"]] == [1, 4, 6]
    chunks = sum(len(episode.actions) for episode in episodes[:3])
    for row in table["rows"]:
        assert {"psnr_1", "psnr_5", "psnr_20", "auc"} <= set(row)
        assert (row["clips"], row["chunks"]) == (2, chunks)
        assert row["ends"] == sum(episode.terminated for episode in episodes[:3])
    assert len({row["psnr_20"] for row in table["rows"]}) == 3
    assert len(said) == 3


def test_the_worlds_own_range_gives_its_own_numbers(
    tiny_world: World, episodes: list[EpisodeData]
) -> None:
    one = measure_kv_ranges(tiny_world, episodes[:2], [4], SETTINGS, clips=2, prefix=3)
    two = measure_kv_ranges(tiny_world, episodes[:2], [4, 2], SETTINGS, clips=2, prefix=3)
    assert one["rows"][0] == two["rows"][0]


def test_a_world_that_learned_at_several_ranges_says_so(
    tiny_world: World, episodes: list[EpisodeData], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny_world.card, "training", {"most_kv_range": 16})
    table = measure_kv_ranges(tiny_world, episodes[:2], [2], SETTINGS, clips=2, prefix=3)
    assert table["trained_at"] == [1, 2, 4, 8, 16]


def test_steps_have_their_speed_beside_them(
    tiny_world: World, episodes: list[EpisodeData], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(variants, "TIMED_CHUNKS", 2)
    table = measure_step_counts(
        tiny_world, episodes[:3], [1, 2], SETTINGS, clips=2, prefix=2, histories=4
    )
    assert (table["own_steps"], table["wide"], table["histories"]) == (2, 2, 4)
    assert [row["steps"] for row in table["rows"]] == [1, 2]
    for row in table["rows"]:
        assert row["frames_per_s"] > 0 and row["agent_steps_per_s"] > 0
        assert row["hazard_n"] > 0 and row["clips"] == 2
    first, second = table["rows"]
    assert first["psnr_1"] != second["psnr_1"]


def test_tables_are_made_when_asked_for(tiny_world: World, episodes: list[EpisodeData]) -> None:
    sizes = Sizes(clips=2, prefix=2)

    def say(text: str) -> None:
        """Nothing."""

    assert measure_tables(tiny_world, episodes[:2], Tables(), SETTINGS, sizes, say) == {}
    tables = Tables(kv_ranges=[1])
    made = measure_tables(tiny_world, episodes[:2], tables, SETTINGS, sizes, say)
    assert set(made) == {"kv_ranges"}


def test_what_cannot_be_tabled_is_said_at_once(episodes: list[EpisodeData]) -> None:
    check_tables(episodes, Tables(kv_ranges=[1, 8], step_counts=[1]), Sizes())
    with pytest.raises(DatasetError, match="a clip needs 83 chunks"):
        check_tables(episodes, Tables(kv_ranges=[1, 64]), Sizes())
    with pytest.raises(ConfigError, match="KV range"):
        check_tables(episodes, Tables(kv_ranges=[0]), Sizes())
