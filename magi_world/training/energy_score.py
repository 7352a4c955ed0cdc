"""The energy score: a loss under which a model that samples learns to sample.

A model that is trained by squared error and run for one or two denoising steps answers with the
mean of what may come, and the mean of "a fireball or none" is none. The energy score of samples
`x_1 … x_R` against what came, y,

    mean over r of |x_r - y|  -  1/2 mean over pairs of |x_r - x_s|

is smallest, in expectation, when the samples have the distribution of y (Gneiting & Raftery 2007,
section 5: strictly proper): spread is rewarded exactly as much as it is found in the data. So a
generator of one step learns to draw (used so for weather by Lang et al. 2024 and Alet et al. 2025).

The slope of a length does not depend on how long it is, so that a last bit of noise would pull as
hard as a missing fireball. `|d|` is therefore `sqrt(d^2 + c^2) - c`, quadratic below c and linear
above; the kernel stays negative definite and the score strictly proper. But c must be small: of
distances below it the score sees the error of the mean only, and spread costs nothing. With c = 0.5
samples had three times the spread that is real where nothing moves, and a dream drowned in it.

A score of whole pictures says little about a few pixels in them, one of single places nothing
about what belongs together; so it is taken over parts of four sizes and averaged.

Shape suffixes: R samples, G chunks, C channels, P latent frames, h and w the latent grid, n parts
of a chunk, d numbers of a part.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

_WINDOWS = ((2, 2), (4, 2))  # size and stride in latent places: disjoint and overlapping squares
_EPSILON = 1e-6  # under the root, whose slope is infinite at 0
SOFTNESS = 0.1
"""c, in latent deviations a number: below what stays unpredictable where nothing moves"""


def parts(x_GCPhw: Tensor) -> Iterator[Tensor]:
    """Cut chunks (any leading dimensions) into parts `[…, n, d]`, one size after the other.

    Single places, squares of 2 and of 4 places where the grid is large enough, the whole chunk.
    """
    yield x_GCPhw.flatten(-2).flatten(-3, -2).transpose(-1, -2)
    for size, stride in _WINDOWS:
        if min(x_GCPhw.shape[-2:]) >= size:
            windows = x_GCPhw.unfold(-2, size, stride).unfold(-2, size, stride)
            # […, C, P, rows, columns, size, size]: rows and columns count the parts
            yield windows.movedim((-4, -3), (-6, -5)).flatten(-6, -5).flatten(-4)
    yield x_GCPhw.flatten(-4).unsqueeze(-2)


def energy_score(
    samples_RGCPhw: Tensor,
    real_GCPhw: Tensor,
    *,
    weight_Ghw: Tensor | None = None,
    softness: float = SOFTNESS,
) -> Tensor:
    """Energy score of R samples of each chunk, in units of a latent's deviation: `[G]`.

    Lower is better; the score of a perfect sampler is half the mean distance of two samples.
    Distances are root mean squares over the numbers of a part; ``softness`` is c above.
    ``weight_Ghw`` weighs the places of a chunk; the score stays proper as long as weights come from
    what was known before the chunk.

    Raises:
        ValueError: fewer than two samples, or samples and chunks of different shapes.
    """
    count = samples_RGCPhw.shape[0]
    if count < 2 or samples_RGCPhw.shape[1:] != real_GCPhw.shape:
        raise ValueError(
            f"samples {tuple(samples_RGCPhw.shape)} of chunks {tuple(real_GCPhw.shape)}: expected "
            "two or more of the same shape"
        )
    scores = []
    places_Ghw = torch.ones_like(real_GCPhw[:, 0, 0]) if weight_Ghw is None else weight_Ghw
    weights = parts(places_Ghw[:, None, None])
    for samples_RGnd, real_Gnd, weight_Gnd in zip(
        parts(samples_RGCPhw), parts(real_GCPhw), weights, strict=True
    ):
        weight_Gn = weight_Gnd.mean(-1)
        to_real_G = (_distance(samples_RGnd, real_Gnd, softness) * weight_Gn).mean((0, -1))
        pairs = torch.combinations(torch.arange(count)).tolist()
        apart_G = torch.stack(
            [
                (_distance(samples_RGnd[r], samples_RGnd[s], softness) * weight_Gn).mean(-1)
                for r, s in pairs
            ]
        ).mean(0)
        scores.append(to_real_G - 0.5 * apart_G)
    return torch.stack(scores).mean(0)


def _distance(a: Tensor, b: Tensor, softness: float) -> Tensor:
    """Softened distance of parts, `[…, n]`."""
    return ((a - b).square().mean(-1) + softness**2 + _EPSILON).sqrt() - softness
