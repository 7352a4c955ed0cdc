"""Scores over seeds: means, interquartile means and the bootstrap in two levels."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import trim_mean

from magi_world.evaluation.scores import difference, drawn_means, estimate, iqm, mean, ratio


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12))
def test_iqm_is_the_mean_of_the_middle_half(values: list[float]) -> None:
    found = iqm(np.array([values, values]))
    assert found == pytest.approx([trim_mean(values, 0.25)] * 2)


def test_value_and_interval_of_one_seed() -> None:
    returns = np.random.default_rng(0).normal(300, 100, 400)
    found = estimate([returns])
    assert found.value == pytest.approx(returns.mean())
    width = 1.96 * returns.std() / 20
    assert found.low == pytest.approx(found.value - width, abs=0.1 * width)
    assert found.high == pytest.approx(found.value + width, abs=0.1 * width)
    assert estimate([returns], iqm) == found


def test_trainings_that_differ_widen_the_interval() -> None:
    """Episodes are alike within a seed, so that all that varies is the seed drawn."""
    seeds = [np.full(50, value) for value in (100.0, 200.0, 300.0, 400.0, 1000.0)]
    found = estimate(seeds)
    assert found.value == 400.0
    assert found.low < 230 and found.high > 600
    assert estimate(seeds, iqm).value == 300.0
    pooled = estimate([np.concatenate(seeds)])
    assert pooled.high - pooled.low < 0.5 * (found.high - found.low)


def test_draws_are_of_seeds_and_of_their_episodes() -> None:
    means = drawn_means([[0.0, 1.0], [10.0, 11.0, 12.0]], draws=2_000)
    assert means.shape == (2_000, 2)
    small = means < 5
    assert small.mean() == pytest.approx(0.5, abs=0.03)
    assert set(means[small]) == {0.0, 0.5, 1.0}
    assert means[~small].mean() == pytest.approx(11.0, abs=0.05)
    assert small.all(axis=1).mean() == pytest.approx(0.25, abs=0.03)  # the same seed twice


def test_difference_of_two_scores() -> None:
    rng = np.random.default_rng(1)
    better = [rng.normal(1000, 500, 400) for _ in range(3)]
    sweep = [rng.normal(880, 500, 400)]
    found = difference(better, sweep)
    assert found.value == pytest.approx(np.mean([b.mean() for b in better]) - sweep[0].mean())
    assert found.low < found.value < found.high
    assert difference(sweep, sweep).low < 0 < difference(sweep, sweep).high
    assert difference(better, sweep, mean) == found


def test_ratio_of_two_scores_of_the_same_trainings() -> None:
    rng = np.random.default_rng(2)
    real = [rng.normal(mean, 100, 200) for mean in (500, 1000, 2000)]
    dream = [0.8 * rng.normal(mean, 100, 100) for mean in (500, 1000, 2000)]
    found = ratio(dream, real)
    assert found.low < 0.8 < found.high and found.value == pytest.approx(0.8, abs=0.02)
    assert found.high - found.low < 0.1  # trainings differ, but alike on both sides
    alike = rng.normal(500, 100, 200)
    apart = ratio([alike], [alike])  # the same numbers, but no episode belongs to another
    assert apart.low < 0.99 and apart.high > 1.01
    assert np.isnan(ratio([[1.0]], [[0.0]]).value)
    assert np.isnan(ratio([[1.0]], [[0.0, 1.0]]).low)  # a draw of its mean may be 0
    with pytest.raises(ValueError, match="1 seeds over 2"):
        ratio([[1.0]], [[1.0], [2.0]])


@pytest.mark.parametrize("empty", [[], [[]], [[1.0], []]])
def test_a_score_needs_episodes(empty: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="needs episodes"):
        drawn_means(empty)
