"""Pure measures on numpy arrays: picture error, ranking, calibration, means with intervals."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Frames = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

PEAK = 255.0
MOST_PSNR = 120.0
"""dB that stand for an exact copy where its infinite PSNR cannot be averaged"""


class SquaredError:
    """Running sum of squared byte differences; its PSNR is that of all pixels pooled.

    Pooling gives a finite number where single pictures are reproduced exactly, which the mean of
    single PSNRs does not.
    """

    def __init__(self) -> None:
        self.total = 0.0
        self.count = 0

    def add(self, real: Frames, other: Frames, mask: Mask | None = None) -> None:
        """Add uint8 arrays of one shape; `mask` (broadcastable to it) keeps some of the values."""
        if real.shape != other.shape:
            raise ValueError(f"shapes differ: {real.shape} and {other.shape}")
        difference = real.astype(np.float32) - other.astype(np.float32)
        if mask is not None:
            difference = difference[np.broadcast_to(mask, real.shape)]
        self.total += float(np.square(difference).sum(dtype=np.float64))
        self.count += difference.size

    @property
    def psnr(self) -> float:
        """PSNR in dB (peak 255): infinite without error, NaN without pixels."""
        if not self.count:
            return math.nan
        return psnr_of_mse(self.total / self.count)


def psnr_of_mse(mse: float) -> float:
    """PSNR in dB of a mean squared error in byte units."""
    return math.inf if mse == 0 else 10 * math.log10(PEAK**2 / mse)


def moving_pixels(chunks: Frames, threshold: int) -> Mask:
    """Mark the pixels whose brightest and darkest value in a chunk differ by more than `threshold`.

    Takes uint8 `[n, F, H, W, 3]`; a pixel moves if any of its three colours does. Returns bool
    `[n, 1, H, W, 1]`, which broadcasts to the chunks.
    """
    change = chunks.max(axis=1, keepdims=True) - chunks.min(axis=1, keepdims=True)
    moving: Mask = (change > threshold).any(axis=-1, keepdims=True)
    return moving


def mean_chunk_psnr(mean_squared: Sequence[float] | Floats) -> dict[str, float | int]:
    """Mean over chunks of each chunk's own PSNR in dB, from their mean squared byte errors, and n.

    Unlike the pooled PSNR it weighs an easy chunk as much as a hard one, so it is the higher of the
    two. An exactly reproduced chunk counts as `MOST_PSNR`, one without pixels (NaN) is left out.
    """
    errors = np.asarray(mean_squared, np.float64)
    errors = np.maximum(errors[~np.isnan(errors)], PEAK**2 / 10 ** (MOST_PSNR / 10))
    mean = float((10 * np.log10(PEAK**2 / errors)).mean()) if errors.size else math.nan
    return {"psnr": mean, "n": int(errors.size)}


def auc(scores: Floats, positive: Mask) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties half.

    NaN if one of the two classes is empty.
    """
    scores = np.asarray(scores, np.float64)
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return math.nan
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2  # ranks from 1, ties share their mean
    rank_sum = float(mean_rank[inverse][positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def calibration(
    probability: Floats, happened: Mask, edges: Sequence[float]
) -> list[dict[str, float | int]]:
    """Mean predicted beside observed frequency, one row a bin `[edge, next edge)`; empty bins go.

    The last bin includes its upper edge. `events` of the bin's n happened; `observed_low` and
    `observed_high` are the 95 % Wilson interval of the observed frequency.
    """
    bins = np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, len(edges) - 2)
    rows: list[dict[str, float | int]] = []
    for index, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        chosen = bins == index
        if chosen.any():
            events, total = int(happened[chosen].sum()), int(chosen.sum())
            lowest, highest = share_interval(events, total)
            rows.append(
                {
                    "from": low,
                    "to": high,
                    "predicted": float(probability[chosen].mean()),
                    "observed": events / total,
                    "observed_low": lowest,
                    "observed_high": highest,
                    "events": events,
                    "n": total,
                }
            )
    return rows


def mean_and_std(values: Sequence[float] | Floats) -> dict[str, float | int]:
    """Mean, standard deviation (n - 1 in the denominator; 0 for one value) and n."""
    array = np.asarray(values, np.float64)
    if not array.size:
        return {"mean": math.nan, "std": math.nan, "n": 0}
    std = float(array.std(ddof=1)) if array.size > 1 else 0.0
    return {"mean": float(array.mean()), "std": std, "n": int(array.size)}


def difference_interval(
    first: Sequence[float] | Floats,
    second: Sequence[float] | Floats,
    *,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % bootstrap interval of mean(first) - mean(second), the samples drawn independently."""
    rng = np.random.default_rng(seed)

    def means(values: Sequence[float] | Floats) -> Floats:
        array = np.asarray(values, np.float64)
        drawn = array[rng.integers(len(array), size=(draws, len(array)))]
        result: Floats = drawn.mean(axis=1)
        return result

    low, high = np.quantile(means(first) - means(second), [0.025, 0.975])
    return float(low), float(high)


def ratio_interval(
    first: Sequence[float] | Floats,
    second: Sequence[float] | Floats,
    *,
    paired: bool = False,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % bootstrap interval of mean(first) / mean(second).

    The samples are drawn independently; `paired` draws the same rows of both, which is the interval
    of a ratio of sums over clusters, such as the episodes that many chunks come from. A draw whose
    second mean is 0 counts as infinite. NaN where a sample is empty.
    """
    numerator, denominator = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if not numerator.size or not denominator.size:
        return math.nan, math.nan
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(numerator), size=(draws, len(numerator)))
    others = rows if paired else rng.integers(len(denominator), size=(draws, len(denominator)))
    means, other_means = numerator[rows].mean(axis=1), denominator[others].mean(axis=1)
    ratios = np.full(draws, math.inf)
    np.divide(means, other_means, out=ratios, where=other_means != 0)
    low, high = np.quantile(ratios, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def sums_by(owner: npt.NDArray[np.int64], values: npt.NDArray[Any]) -> Floats:
    """Sum of the values `[n]` of each owner in `owner` `[n]` that there is, in its order.

    For intervals of what is not independent: one row an episode, not one for each of its chunks.
    """
    _, rows = np.unique(owner, return_inverse=True)
    return np.bincount(rows, weights=values).astype(np.float64)


def share_interval(count: int, total: int) -> tuple[float, float]:
    """95 % Wilson interval of a share `count / total`; it is honest for rare events, too."""
    if not total:
        return math.nan, math.nan
    z2, share = 1.96**2, count / total
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = math.sqrt(z2 * (share * (1 - share) / total + z2 / (4 * total**2))) / (1 + z2 / total)
    return max(0.0, centre - half), min(1.0, centre + half)


def confusion(
    truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], n: int
) -> list[list[int]]:
    """Count table `[n][n]`: row = true class, column = predicted class."""
    table = np.bincount(truth * n + predicted, minlength=n * n).reshape(n, n)
    rows: list[list[int]] = table.tolist()
    return rows


def blocks(total: int, size: int) -> Iterator[slice]:
    """Slices that cover `range(total)` in blocks of at most `size`."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
