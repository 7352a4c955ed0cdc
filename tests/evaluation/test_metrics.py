"""Picture error, ranking and calibration against definitions written out."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magi_world.evaluation.metrics import (
    SquaredError,
    auc,
    blocks,
    calibration,
    confusion,
    difference_interval,
    mean_and_std,
    mean_chunk_psnr,
    moving_pixels,
    psnr_of_mse,
    ratio_interval,
    share_interval,
    sums_by,
)

SCORED = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=40)


@given(SCORED)
def test_auc_counts_pairs(entries: list[tuple[int, bool]]) -> None:
    positives = [score for score, label in entries if label]
    negatives = [score for score, label in entries if not label]
    found = auc(
        np.array([score for score, _ in entries], np.float64),
        np.array([label for _, label in entries]),
    )
    if not positives or not negatives:
        assert math.isnan(found)
        return
    wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
    assert found == pytest.approx(wins / (len(positives) * len(negatives)))


@given(SCORED)
def test_auc_of_reversed_scores_is_the_rest(entries: list[tuple[int, bool]]) -> None:
    scores = np.array([score for score, _ in entries], np.float64)
    labels = np.array([label for _, label in entries])
    if labels.any() and not labels.all():
        assert auc(scores, labels) + auc(-scores, labels) == pytest.approx(1.0)


def test_psnr_pools_all_pixels() -> None:
    rng = np.random.default_rng(0)
    real = rng.integers(0, 256, (6, 4, 8, 8, 3), np.uint8)
    other = rng.integers(0, 256, real.shape, np.uint8)
    error = SquaredError()
    error.add(real[:2], other[:2])
    error.add(real[2:], other[2:])
    mse = np.mean((real.astype(float) - other.astype(float)) ** 2)
    assert error.psnr == pytest.approx(20 * math.log10(255) - 10 * math.log10(mse))


def test_psnr_at_its_limits() -> None:
    assert psnr_of_mse(0.0) == math.inf
    assert psnr_of_mse(255.0**2) == 0.0
    assert math.isnan(SquaredError().psnr)
    with pytest.raises(ValueError, match="shapes differ"):
        SquaredError().add(np.zeros((1, 2), np.uint8), np.zeros((2, 1), np.uint8))


def test_moving_pixels_and_their_error() -> None:
    chunks = np.full((1, 4, 2, 2, 3), 100, np.uint8)
    chunks[0, 2, 1, 0, 1] = 130  # one colour of one pixel, in one frame
    moving = moving_pixels(chunks, threshold=16)
    assert moving.shape == (1, 1, 2, 2, 1)
    assert moving[0, 0, :, :, 0].tolist() == [[False, False], [True, False]]
    assert not moving_pixels(chunks, threshold=30).any()
    off = chunks.copy()
    off[0, :, 1, 0] += 2  # wrong where it moves
    off[0, :, 0, 0] += 50  # and elsewhere, which must not count
    error = SquaredError()
    error.add(chunks, off, moving)
    assert error.count == 4 * 3
    assert error.psnr == pytest.approx(psnr_of_mse(4.0))


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60))
def test_calibration_puts_every_entry_into_one_bin(entries: list[tuple[float, bool]]) -> None:
    probability = np.array([p for p, _ in entries])
    happened = np.array([h for _, h in entries])
    rows = calibration(probability, happened, [0.0, 0.1, 0.5, 1.0])
    assert sum(row["n"] for row in rows) == len(entries)
    for row in rows:
        assert row["from"] - 1e-12 <= row["predicted"] <= row["to"] + 1e-12
        assert row["observed_low"] <= row["observed"] + 1e-12
        assert row["observed"] - 1e-12 <= row["observed_high"]
    assert sum(row["events"] for row in rows) == happened.sum()
    weighted = sum(row["observed"] * row["n"] for row in rows)
    assert weighted == pytest.approx(happened.sum())


def test_mean_and_std() -> None:
    assert mean_and_std([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(math.sqrt(2)), "n": 2}
    assert mean_and_std([5.0]) == {"mean": 5.0, "std": 0.0, "n": 1}
    assert mean_and_std([])["n"] == 0


def test_difference_interval_holds_the_true_difference() -> None:
    rng = np.random.default_rng(0)
    low, high = difference_interval(rng.normal(3, 1, 400), rng.normal(1, 1, 400))
    assert low < 2 < high
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(2 / 400), rel=0.15)


def test_the_mean_of_chunks_weighs_them_alike() -> None:
    assert mean_chunk_psnr([255.0**2, 255.0**2 / 100]) == {"psnr": pytest.approx(10.0), "n": 2}
    assert mean_chunk_psnr([math.nan, 255.0**2]) == {"psnr": 0.0, "n": 1}
    assert mean_chunk_psnr([0.0]) == {"psnr": pytest.approx(120.0), "n": 1}
    nothing = mean_chunk_psnr([])
    assert math.isnan(nothing["psnr"]) and nothing["n"] == 0


def test_ratio_interval_holds_the_true_ratio() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(3, 1, 400), rng.normal(2, 1, 400)
    low, high = ratio_interval(first, second)
    assert low < 1.5 < high and high - low < 0.3
    # paired rows that rise and fall together leave nothing to chance
    assert ratio_interval(2 * second, second, paired=True) == pytest.approx((2.0, 2.0))
    assert ratio_interval([1.0, 1.0], [0.0, 0.0]) == (math.inf, math.inf)
    assert all(math.isnan(end) for end in ratio_interval([], [1.0]))


@given(st.integers(0, 50), st.integers(1, 50))
def test_share_interval_holds_the_share(count: int, more: int) -> None:
    total = count + more - 1
    low, high = share_interval(count, total)
    if not total:
        assert math.isnan(low) and math.isnan(high)
        return
    assert 0 <= low <= count / total + 1e-12 and count / total - 1e-12 <= high <= 1
    assert high - low > 0


def test_share_interval_of_nothing_seen() -> None:
    low, high = share_interval(0, 100)
    assert low == 0 and high == pytest.approx(0.037, abs=0.001)


def test_confusion_has_truth_in_rows() -> None:
    table = confusion(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 1]), 3)
    assert table == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]


@given(st.integers(0, 50), st.integers(1, 9))
def test_blocks_cover_everything_once(total: int, size: int) -> None:
    covered = [index for rows in blocks(total, size) for index in range(rows.start, rows.stop)]
    assert covered == list(range(total))


def test_sums_by_owner_leave_out_those_without_values() -> None:
    sums = sums_by(np.array([3, 1, 3, 7]), np.array([1.0, 2.0, 4.0, 8.0]))
    assert sums.tolist() == [2.0, 5.0, 8.0]
