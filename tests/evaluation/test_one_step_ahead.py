"""One step ahead of a real prefix: every chunk once, from what really came before it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from magi_world.errors import ConfigError, DatasetError
from magi_world.evaluation.dreaming import DreamSettings
from magi_world.evaluation.one_step_ahead import (
    SEED_STRIDE,
    OneStepAhead,
    health_lost,
    measure_damage,
    measure_points,
    measure_termination,
    one_step_ahead,
)
from magi_world.training.episodes import EpisodeData
from magi_world.world import World


def test_every_position_is_dreamed_from_the_real_chunks_before_it(
    tiny_world: World, episodes: list[EpisodeData]
) -> None:
    ahead = one_step_ahead(tiny_world, episodes[:3], DreamSettings(batch_size=2))
    lengths = sorted(len(episode.actions) for episode in episodes[:3])
    assert len(ahead.age) == sum(lengths)
    assert ahead.terminal.sum() == sum(episode.terminated for episode in episodes[:3])

    shortest = min(episodes[:3], key=lambda episode: len(episode.frames))
    prompts = [tiny_world.card["prompts"][action] for action in shortest.actions]
    # the shortest episode walks in the first slot, whose seed is 0
    for age in (1, 7):
        rollout = tiny_world.rollout(1, seeds=[SEED_STRIDE * age])
        video = shortest.frames[:age].reshape(-1, 64, 64, 3)
        rollout.reset(video=video, prompts=["stand still", *prompts[: age - 1]])
        alone = float(rollout.step([prompts[age - 1]]).termination_probability)
        assert ahead.probability[ahead.age == age][0] == pytest.approx(alone, abs=1e-4)


def test_age_and_end_stand_in_the_right_rows(
    tiny_world: World, episodes: list[EpisodeData]
) -> None:
    said: list[str] = []
    ahead = one_step_ahead(tiny_world, episodes[:3], DreamSettings(batch_size=32), say=said.append)
    for episode in episodes[:3]:
        last = len(episode.actions)
        assert ahead.terminal[ahead.age == last].any() == episode.terminated
    assert not ahead.terminal[ahead.age < 28].any()
    assert said == ["termination: 3 of 3 episodes"]
    assert np.isnan(ahead.damage).all()  # the tiny world has no such signal
    assert measure_damage(ahead) is None


def test_draws_of_a_chunk_have_noise_of_their_own(
    tiny_world: World, episodes: list[EpisodeData]
) -> None:
    settings = DreamSettings(batch_size=2)
    one = one_step_ahead(tiny_world, episodes[:3], settings)
    assert_array_equal(one.expected, one.probability)
    three = one_step_ahead(tiny_world, episodes[:3], settings, draws=3)
    assert three.probability == pytest.approx(one.probability, abs=1e-4)
    assert three.reward == pytest.approx(one.reward, abs=1e-3)
    assert three.expected.shape == one.expected.shape
    assert np.abs(three.expected - three.probability).max() > 1e-3
    with pytest.raises(ConfigError, match="draws 0"):
        one_step_ahead(tiny_world, episodes[:3], settings, draws=0)


def made_up(probability: list[float], terminal: list[bool]) -> OneStepAhead:
    n = len(terminal)
    return OneStepAhead(
        probability=np.array(probability),
        expected=np.array(probability[::-1]),
        observed=np.array(terminal, np.float64),
        terminal=np.array(terminal),
        age=np.arange(n),
        damage=np.array(probability),
        lost=np.array([0.4 if end else 0.0 for end in terminal]),
        reward=np.zeros((n, 1)),
        paid=np.zeros((n, 1)),
    )


def test_measures_of_known_answers() -> None:
    ahead = made_up([0.9, 0.05, 0.002, 0.001], [True, False, False, False])
    result = measure_termination(ahead, draws=3)
    assert (result["auc_expected"], result["draws"]) == (0.0, 3)
    assert (result["n"], result["terminal"]) == (4, 1)
    assert result["auc"] == 1.0
    assert result["auc_age"] == 0.0
    assert result["auc_observed"] == 1.0
    assert result["mean_observed"] == 0.25
    assert sum(row["n"] for row in result["calibration"]) == 4
    damage = measure_damage(ahead)
    assert damage is not None
    assert (damage["n"], damage["hits"], damage["auc"]) == (4, 1, 1.0)
    assert damage["mean_observed"] == pytest.approx(0.1)


def test_points_seen_by_player() -> None:
    ahead = replace(
        made_up([0.0] * 4, [False] * 4),
        paid=np.array([[1.0, -1.0], [-1.0, 1.0], [0.0, 0.0], [-1.0, 1.0]]),
        reward=np.array([[0.5, -0.75], [-0.2, 0.2], [0.1, -0.3], [-0.4, 0.4]]),
    )
    points = measure_points(ahead, ["right", "left"])
    assert points is not None and points["n"] == 4
    right, left = points["players"]["right"], points["players"]["left"]
    assert (right["won"], right["lost"]) == (1, 2)
    assert right["won_seen"] == pytest.approx(0.5)
    assert right["lost_seen"] == left["won_seen"] == pytest.approx(0.3)
    assert left["lost_seen"] == pytest.approx(0.75)
    assert right["elsewhere"] == pytest.approx(0.1)
    assert measure_points(ahead, []) is None


def test_rewards_stand_beside_what_was_dreamed(
    tiny_world: World, episodes: list[EpisodeData]
) -> None:
    ahead = one_step_ahead(tiny_world, episodes[:3], DreamSettings(batch_size=32))
    assert ahead.reward.shape == ahead.paid.shape == (len(ahead.age), 1)
    total = sum(float(episode.rewards.sum()) for episode in episodes[:3])
    assert ahead.paid.sum() == pytest.approx(total)


def test_no_ends_give_no_area() -> None:
    assert math.isnan(measure_termination(made_up([0.1, 0.2], [False, False]))["auc"])


def test_health_lost_is_a_share_of_the_whole(episodes: list[EpisodeData]) -> None:
    lost = health_lost(episodes[0])
    assert len(lost) == len(episodes[0].frames)
    assert lost[10] == pytest.approx(0.3)
    assert lost[-1] == pytest.approx(0.7)
    assert lost.sum() == pytest.approx(1.0)


def test_there_must_be_episodes(tiny_world: World) -> None:
    with pytest.raises(DatasetError, match="no episodes"):
        one_step_ahead(tiny_world, [], DreamSettings())


def test_the_noise_differs_from_place_to_place() -> None:
    first = torch.randn(4, generator=torch.Generator().manual_seed(SEED_STRIDE))
    second = torch.randn(4, generator=torch.Generator().manual_seed(2 * SEED_STRIDE))
    assert not torch.equal(first, second)
