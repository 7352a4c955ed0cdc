"""Moving pictures: MP4 files, and two clips side by side."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np

from magi_world.errors import missing_package
from magi_world.evaluation.metrics import Frames
from magi_world.media.writing import require_av

LABEL_HEIGHT = 14
"""pixels of the bar that holds a label"""


def write_mp4(path: str | Path, frames: Iterable[Frames], fps: float) -> int:
    """Write uint8 RGB frames `[H, W, 3]` of one size (even height and width) as H.264.

    `frames` may be a generator: frames are encoded as they come. Returns how many were written.

    Raises:
        MissingPackage: PyAV is not installed.
        ValueError: no frames, an odd size, or a frame of another size than the first.
    """
    require_av()
    import av

    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"{path}: there are no frames to write")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"{path}: H.264 needs even sizes, the frames are {width}x{height}")
    count = 0
    with av.open(str(path), mode="w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"  # players refuse the 4:4:4 that RGB would give
        stream.options = {"crf": "16"}
        frame: Frames | None = first
        while frame is not None:
            if frame.shape != first.shape:
                raise ValueError(f"{path}: frame {count} is {frame.shape}, not {first.shape}")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))))
            count += 1
            frame = next(iterator, None)
        container.mux(stream.encode())
    return count


def enlarge(frames: Frames, scale: int) -> Frames:
    """Repeat every pixel of uint8 `[..., H, W, 3]` `scale` times in both directions."""
    return frames.repeat(scale, axis=-3).repeat(scale, axis=-2)


def label_bar(text: str, width: int) -> Frames:
    """A dark bar uint8 `[LABEL_HEIGHT, width, 3]` with white text; what does not fit is cut."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise missing_package("pillow", "video", "writing labels into pictures") from error
    bar = Image.new("RGB", (width, LABEL_HEIGHT), (24, 24, 24))
    ImageDraw.Draw(bar).text((3, 1), text, fill=(255, 255, 255))
    return np.asarray(bar)


def side_by_side(left: Frames, right: Frames, labels: tuple[str, str], *, scale: int = 4) -> Frames:
    """Two clips uint8 `[n, H, W, 3]` beside each other under their labels, enlarged `scale` times.

    The shorter clip holds its last frame until the longer one ends. Returns uint8
    `[max(n), H * scale + LABEL_HEIGHT, 2 * W * scale, 3]`.
    """
    if not len(left) or not len(right) or left.shape[1:] != right.shape[1:]:
        raise ValueError(f"clips of {left.shape} and {right.shape} do not fit side by side")
    length = max(len(left), len(right))
    halves = []
    for clip, label in zip((left, right), labels, strict=True):
        held = np.concatenate([clip, clip[-1:].repeat(length - len(clip), axis=0)])
        picture = enlarge(held, scale)
        bar = label_bar(label, picture.shape[2])
        bars = np.broadcast_to(bar, (length, *bar.shape))
        halves.append(np.concatenate([bars, picture], axis=1))
    return np.concatenate(halves, axis=2)
