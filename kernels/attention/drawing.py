"""Pictures of a mask, made from the key intervals of its rows and not from its cells."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]

_SHADES = "·░▒▓█"
"""nothing of a cell is visible, up to a third, up to two thirds, less than all, all"""


def draw_text(
    left_FR: Ints, right_FR: Ints, num_keys: int, *, height: int = 24, width: int = 64
) -> list[str]:
    """Lines of text, queries downwards and keys to the right; large masks are sampled by row."""
    R = left_FR.shape[1]
    if R == 0 or num_keys == 0:
        return []
    height, width = min(height, R), min(width, num_keys)
    columns = np.linspace(0, num_keys, width + 1)
    lines = []
    edges = np.arange(height + 1) * R // height
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        rows = np.unique(np.linspace(start, end - 1, 16).astype(np.int64))
        left, right = left_FR[:, rows, None], right_FR[:, rows, None]
        inside = np.minimum(right, columns[1:]) - np.maximum(left, columns[:-1])
        share = np.maximum(inside, 0).sum(0).mean(0) / np.diff(columns)
        shade = np.ceil(np.round(share, 6) * 3).astype(np.int64)
        shade[share > 1 - 1e-6] = 4
        lines.append("  " + "".join(_SHADES[index] for index in shade))
    return lines


def plot_intervals(left_FR: Ints, right_FR: Ints, extent: tuple[int, int], ax: Any = None) -> Any:
    """See :meth:`magi_world.kernels.attention.AttnSlices.plot`."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "plotting a mask needs the package 'matplotlib': pip install 'magi-world[eval]'"
        ) from error
    num_queries, num_keys = extent
    if ax is None:
        _, ax = pyplot.subplots()
    edges = np.arange(num_queries + 1)
    for left, right in zip(left_FR, right_FR, strict=True):
        # a step holds from the upper edge of a row to its lower edge
        sides = [np.append(side, side[-1:]) for side in (left, right)]
        if num_queries:
            ax.fill_betweenx(edges, *sides, step="post", linewidth=0, color="tab:blue")
    ax.set(xlim=(0, max(num_keys, 1)), ylim=(max(num_queries, 1), 0), xlabel="key", ylabel="query")
    return ax
