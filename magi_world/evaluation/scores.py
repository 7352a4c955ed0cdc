"""Scores of agents that were trained several times: means over seeds, and how sure they are.

A score is a list of training seeds, each a list of episodes' returns. Training again gives another
agent, so intervals come from a bootstrap in two levels: seeds are drawn, and within each drawn
one its episodes. With one seed only the episodes are drawn, and the interval says nothing about
training again.

Shape suffixes: S seeds, R bootstrap draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Returns = Sequence[float] | npt.NDArray[np.float64]
Means = npt.NDArray[np.float64]
Statistic = Callable[[Means], Means]

DRAWS = 10_000
_ROWS = 1_000  # resampled episodes in memory at a time


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


def mean(means_RS: Means) -> Means:
    """Mean over the last axis."""
    result: Means = means_RS.mean(axis=-1)
    return result


def iqm(means_RS: Means) -> Means:
    """Interquartile mean over the last axis: a quarter of the values is cut off at either end.

    Of n values the `n // 4` lowest and highest go, so with up to three it is the mean; rliable and
    `scipy.stats.trim_mean` count likewise.
    """
    cut = means_RS.shape[-1] // 4
    result: Means = np.sort(means_RS, axis=-1)[..., cut : means_RS.shape[-1] - cut].mean(axis=-1)
    return result


def drawn_means(
    seeds: Sequence[Returns],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    chosen_RS: npt.NDArray[np.int64] | None = None,
) -> Means:
    """Bootstrap: in each draw as many seeds as there are, of each its resampled mean, `[R, S]`.

    `chosen_RS` are the seeds of each draw where they have been drawn.

    Raises:
        ValueError: no seeds, or one without episodes.
    """
    arrays = [np.asarray(returns, np.float64) for returns in seeds]
    if not arrays or not all(array.size for array in arrays):
        raise ValueError(f"a score needs episodes, got {[array.size for array in arrays]} by seed")
    rng = np.random.default_rng(seed)
    if chosen_RS is None:
        chosen_RS = rng.integers(len(arrays), size=(draws, len(arrays)))
    means_RS = np.empty(chosen_RS.shape)
    for index, array in enumerate(arrays):
        rows, columns = np.nonzero(chosen_RS == index)
        for start in range(0, len(rows), _ROWS):
            part = slice(start, start + _ROWS)
            size = (len(rows[part]), len(array))
            means_RS[rows[part], columns[part]] = array[rng.integers(len(array), size=size)].mean(1)
    return means_RS


def estimate(seeds: Sequence[Returns], statistic: Statistic = mean) -> Estimate:
    """A statistic over the seeds' means, with the 95 % bootstrap interval in two levels."""
    value = statistic(np.array([np.mean(returns) for returns in seeds]))
    low, high = np.quantile(statistic(drawn_means(seeds)), [0.025, 0.975])
    return Estimate(float(value), float(low), float(high))


def difference(
    seeds: Sequence[Returns], others: Sequence[Returns], statistic: Statistic = mean
) -> Estimate:
    """How far one score lies above another one, both drawn independently; see `estimate`."""
    value, other = (
        statistic(np.array([np.mean(returns) for returns in score])) for score in (seeds, others)
    )
    drawn_R = statistic(drawn_means(seeds)) - statistic(drawn_means(others, seed=1))
    low, high = np.quantile(drawn_R, [0.025, 0.975])
    return Estimate(float(value - other), float(low), float(high))


def ratio(seeds: Sequence[Returns], others: Sequence[Returns]) -> Estimate:
    """One score's mean over that of another one, of the same trainings in the same order.

    Trainings are drawn for both together, for they share what training again changes, and of each
    its episodes in both places apart. NaN where the other mean is 0, or a draw of it.

    Raises:
        ValueError: not as many seeds as others, or one without episodes.
    """
    if len(seeds) != len(others):
        raise ValueError(f"{len(seeds)} seeds over {len(others)} of others: need as many")
    value, other = (np.mean([np.mean(returns) for returns in score]) for score in (seeds, others))
    chosen_RS = np.random.default_rng(0).integers(len(seeds), size=(DRAWS, len(seeds)))
    above_R, below_R = (
        drawn_means(score, seed=1 + place, chosen_RS=chosen_RS).mean(axis=-1)
        for place, score in enumerate((seeds, others))
    )
    if other == 0 or not below_R.all():
        return Estimate(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(above_R / below_R, [0.025, 0.975])
    return Estimate(float(value / other), float(low), float(high))
