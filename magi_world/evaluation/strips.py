"""Picture strips: a row of real chunks above the row that the world dreamed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from magi_world.errors import missing_package
from magi_world.evaluation.clips import Clips
from magi_world.evaluation.metrics import Frames
from magi_world.evaluation.video import enlarge, label_bar

GAP = 2
"""dark pixels between two pictures of a row"""


def strip(rows: Sequence[tuple[str, Frames]], *, scale: int = 2) -> Frames:
    """Stack labelled rows of pictures uint8 `[n, H, W, 3]` into one picture uint8 `[h, w, 3]`.

    All rows have the same number of pictures. Use one picture a chunk (its last frame): column k
    of every row is then chunk k.
    """
    shapes = {pictures.shape for _, pictures in rows}
    if len(shapes) != 1:
        raise ValueError(f"rows of one strip have one shape, got {sorted(shapes)}")
    parts = []
    for label, pictures in rows:
        large = enlarge(pictures, scale)
        row = np.concatenate(
            [np.pad(picture, ((0, GAP), (0, GAP), (0, 0))) for picture in large], axis=1
        )
        parts += [label_bar(label, row.shape[1]), row]
    return np.concatenate(parts, axis=0)


def write_png(path: str | Path, picture: Frames) -> None:
    """Write one picture uint8 `[H, W, 3]` as PNG."""
    try:
        from PIL import Image
    except ImportError as error:
        raise missing_package("pillow", "video", "writing PNG files") from error
    Image.fromarray(picture).save(path, format="PNG")


def write_strips(out: Path, clips: Clips, dreamed: Frames, count: int) -> list[Path]:
    """Write PNGs of the first clips: the last frame of every real chunk above the dreamed one."""
    paths = []
    for index in range(min(count, len(clips))):
        rows: list[tuple[str, Frames]] = [
            (
                f"real: {clips.horizon} chunks after a prefix of {clips.prefix}",
                clips.frames[index, clips.prefix :, -1],
            ),
            ("dream: same prefix and actions, open loop", dreamed[index, :, -1]),
        ]
        path = out / f"strip_{index}.png"
        write_png(path, strip(rows))
        paths.append(path)
    return paths
