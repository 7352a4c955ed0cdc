"""Pictures of any size become frames of a world's size, by exact area averaging."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]

_HALF = 0.5 + 1e-6  # a mean half-way between two bytes is rounded up on every machine


@lru_cache(maxsize=64)
def _weights(pixels: int, cells: int) -> npt.NDArray[np.float64]:
    """Share of each pixel in each cell of equal width, `[cells, pixels]`, rows sum to 1."""
    edges = np.linspace(0, pixels, cells + 1)
    left, right = edges[:-1, None], edges[1:, None]
    index = np.arange(pixels)
    overlap = np.minimum(right, index + 1) - np.maximum(left, index)
    weights: npt.NDArray[np.float64] = np.clip(overlap, 0, None) * (cells / pixels)
    return weights


def shrink(pictures: Frames, height: int, width: int) -> Frames:
    """Average the pixels under each pixel of the result.

    Takes uint8 `[..., H, W, 3]` of any height and width, returns uint8 `[..., height, width, 3]`;
    pictures of that size already come back as they are. The sides are scaled apart, so another
    aspect ratio squeezes the picture.
    """
    H, W = pictures.shape[-3:-1]
    if (H, W) == (height, width):
        return pictures
    rows = _weights(H, height) @ pictures.reshape(*pictures.shape[:-3], H, W * 3).astype(np.float64)
    cells = _weights(W, width) @ rows.reshape(*pictures.shape[:-3], height, W, 3)
    frames: Frames = np.floor(cells + _HALF).astype(np.uint8)
    return frames
