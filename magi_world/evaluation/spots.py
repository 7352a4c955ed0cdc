"""Bright spots of a picture, fireballs among them, and which of them another picture has too.

Counted by pixels, a fireball right before the player weighs as much as fifty far ones. But it is
the far ones that a dream must carry on for seconds; so spots are counted one by one, by size.

Shape suffixes: H and W pixels, C colours, K classes of size.
"""

import numpy as np
import numpy.typing as npt

from magi_world.errors import missing_package
from magi_world.evaluation.metrics import Frames, Mask

Integers = npt.NDArray[np.int64]

BRIGHT = 192
"""byte that one colour of a pixel must reach to count as bright"""
SIZES = ((1, 3), (4, 8), (9, 24), (25, 80), (81, 4096))
"""smallest and largest number of pixels of a spot in each class"""
NEAR = 2
"""pixels, in all directions, within which the other picture must be bright"""
NAMES = tuple(f"{first}-{last}" for first, last in SIZES)


def require_scipy() -> None:
    """Raise `MissingPackage` where scipy is not installed, before anything is measured."""
    try:
        import scipy.ndimage  # noqa: F401
    except ImportError as error:
        raise missing_package("scipy", "eval", "bright spots") from error


def count_spots(real_HWC: Frames, *others_HWC: Frames) -> Integers:
    """The spots of one picture by size, and how many of them each other picture has: `[1 + n, K]`.

    A spot is a connected set of bright pixels, corners included; it is found where the other
    picture has a bright pixel on it or within `NEAR` pixels of it. Pictures are uint8 `[H, W, 3]`.
    """
    from scipy.ndimage import binary_dilation, label  # of the extra `eval`

    corners = np.ones((3, 3), bool)
    spots_HW, count = label(_bright(real_HWC), corners)
    near = [binary_dilation(_bright(other), corners, NEAR) for other in others_HWC]
    table = np.zeros((1 + len(others_HWC), len(SIZES)), np.int64)
    for spot in range(1, count + 1):
        mask: Mask = spots_HW == spot
        size = int(mask.sum())
        kind = next(i for i, (_, last) in enumerate(SIZES) if size <= last or i == len(SIZES) - 1)
        table[0, kind] += 1
        for row, found in enumerate(near, start=1):
            table[row, kind] += bool(found[mask].any())
    return table


def _bright(picture_HWC: Frames) -> Mask:
    result: Mask = picture_HWC.max(axis=-1) >= BRIGHT
    return result
