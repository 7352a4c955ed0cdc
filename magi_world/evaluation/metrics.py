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

    The last bin includes its upper edge.
    """
    bins = np.clip(np.searchsorted(edges, probability, side="right") - 1, 0, len(edges) - 2)
    rows: list[dict[str, float | int]] = []
    for index, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        chosen = bins == index
        if chosen.any():
            rows.append(
                {
                    "from": low,
                    "to": high,
                    "predicted": float(probability[chosen].mean()),
                    "observed": float(happened[chosen].mean()),
                    "n": int(chosen.sum()),
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
