"""Episode lengths beside each other, and the choice of the sweep."""

import pytest

from magi_world.evaluation.lengths import SWEEP_PERIODS, SWEEP_SEED, choose_sweep, measure_lengths


def test_every_period_plays_the_same_seeds_and_the_best_wins() -> None:
    played: list[tuple[int, int, int]] = []

    def play(period: int, first_seed: int, episodes: int) -> list[float]:
        played.append((period, first_seed, episodes))
        return [1000.0 - abs(period - 28) + index % 2 for index in range(episodes)]

    said: list[str] = []
    best, sweeps = choose_sweep(play, episodes=4, say=said.append)
    assert best == 28
    assert list(sweeps) == [str(period) for period in SWEEP_PERIODS]
    assert sweeps["28"] == {"mean": 1000.5, "std": sweeps["28"]["std"], "n": 4}
    assert played == [(period, SWEEP_SEED, 4) for period in SWEEP_PERIODS]
    assert len(said) == len(SWEEP_PERIODS)


def test_lengths_stand_beside_each_other() -> None:
    said: list[str] = []
    players = {"noop": (lambda: [100.0, 110.0], lambda: [150.0, 170.0, 160.0])}
    result = measure_lengths(players, said.append)
    row = result["noop"]
    assert row["dream"]["mean"] == 105.0 and row["dream"]["n"] == 2
    assert row["real"]["mean"] == 160.0 and row["real"]["n"] == 3
    low, high = row["difference_interval"]
    assert -70 <= low <= -55 <= high <= -40
    assert row["ratio"] == pytest.approx(105 / 160)
    low, high = row["ratio_interval"]
    assert 100 / 170 <= low < 105 / 160 < high <= 110 / 150
    assert said == ["lengths of noop: 105 (dream) and 160 (real), tics"]
