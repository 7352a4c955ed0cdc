"""Pictures and videos on disk to frames of a given size (uint8 RGB).

As published, a picture is stretched to the size that is generated. That distorts it when the
aspect ratios differ, so it can be cropped or padded instead.
"""

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from magi_world.errors import ConfigError, MediaError, missing_package

Frames = NDArray[np.uint8]
Fit = Literal["stretch", "crop", "pad"]
"""stretched; centre cut out; whole picture between black bars"""
Keep = Literal["first", "last"]

_QUARTERS = {90: ("transpose", "cclock"), 180: ("hflip", ""), 270: ("transpose", "clock")}


def read_image(path: Path | str, height: int, width: int, *, fit: Fit = "stretch") -> Frames:
    """Read a picture in any format that Pillow knows.

    The orientation that a camera has noted is applied, transparency is laid over black, and of an
    animation the first picture is taken.

    Args:
        path: the file.
        height: rows of the result.
        width: columns of the result.
        fit: how another aspect ratio becomes that of the result.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        MediaError: no such file, or no picture that can be read to its end.
        ConfigError: an unknown fit or a size below 1.
        MissingPackage: Pillow is absent.
    """
    _check(height, width, fit)
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise missing_package("pillow", "video", "reading pictures") from error
    path = _file(path)
    try:
        with Image.open(path) as opened:
            picture = _to_rgb(ImageOps.exif_transpose(opened))
    # Pillow reports damaged files by many classes, SyntaxError and struct.error among them
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MediaError(f"{path} cannot be read as a picture: {reason}") from None
    box = _cut(picture.height, picture.width, height, width) if fit == "crop" else None
    size = (width, height)
    if fit == "pad":
        rows, columns = _inside(picture.height, picture.width, height, width)
        size = (columns, rows)
    pixels = np.asarray(picture.resize(size, Image.Resampling.BICUBIC, box=box))
    if pixels.shape[:2] == (height, width):
        return pixels.copy()  # Pillow's own memory is read-only
    frame = np.zeros((height, width, 3), np.uint8)
    top, left = (height - pixels.shape[0]) // 2, (width - pixels.shape[1]) // 2
    frame[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
    return frame


def read_video(
    path: Path | str,
    height: int,
    width: int,
    fps: float,
    *,
    fit: Fit = "stretch",
    keep: Keep = "first",
    max_frames: int | None = None,
) -> Frames:
    """Read a video at another rate and size, as ffmpeg's own filters do it.

    Args:
        path: a file in any format that ffmpeg knows.
        height: rows of the result.
        width: columns of the result.
        fps: frames per second of the result; frames are repeated or left out, never mixed.
        fit: how another aspect ratio becomes that of the result.
        keep: which end of a longer video is kept; reading stops early with "first".
        max_frames: frames kept at most; None keeps all, in memory.

    Returns:
        uint8 `[T, height, width, 3]`, T at least 1.

    Raises:
        MediaError: no such file, no video in it, no frames, or damage before the frames wanted.
        ConfigError: an unknown fit or end, a size, rate or number below 1.
        MissingPackage: PyAV is absent.
    """
    _check(height, width, fit)
    if not fps > 0 or keep not in get_args(Keep) or (max_frames is not None and max_frames < 1):
        raise ConfigError(
            f"fps {fps!r}, keep {keep!r}, max_frames {max_frames!r}: a rate above 0, one of "
            f"{get_args(Keep)}, and None or 1 or more are needed"
        )
    try:
        import av
    except ImportError as error:
        raise missing_package("av", "video", "reading videos") from error
    path = _file(path)
    frames: deque[Frames] = deque(maxlen=max_frames if keep == "last" else None)
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MediaError(f"{path} holds no video")
            for frame in _filtered(av, container, height, width, fps, fit):
                frames.append(frame)
                if keep == "first" and len(frames) == max_frames:
                    break
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(f"{path} cannot be read as a video: {error}") from None
    if not frames:
        raise MediaError(f"{path} holds a video without frames")
    return np.stack(frames)


def _check(height: int, width: int, fit: str) -> None:
    if height < 1 or width < 1:
        raise ConfigError(f"size {height}x{width}: at least one pixel each way is needed")
    if fit not in get_args(Fit):
        raise ConfigError(f"fit {fit!r} is not one of {get_args(Fit)}")


def _file(path: Path | str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise MediaError(f"{path} is {'a folder' if path.is_dir() else 'not there'}")
    return path


def _to_rgb(picture: Any) -> Any:
    """A Pillow picture as 8-bit RGB over black."""
    from PIL import Image

    if picture.mode.startswith("I"):  # 16 bits of grey: Pillow itself would clip them
        grey = np.clip(np.asarray(picture).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        above = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "black"), above).convert("RGB")
    return picture.convert("RGB")


def _cut(H: int, W: int, height: int, width: int) -> tuple[float, float, float, float]:
    """The largest centred box of the wanted aspect ratio: left, top, right, bottom."""
    scale = min(H / height, W / width)
    rows, columns = min(H, height * scale), min(W, width * scale)
    left, top = (W - columns) / 2, (H - rows) / 2
    return left, top, left + columns, top + rows


def _inside(H: int, W: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the whole picture inside the wanted size."""
    scale = min(height / H, width / W)
    return (
        min(height, max(1, round(H * scale))),
        min(width, max(1, round(W * scale))),
    )


def _filtered(
    av: Any, container: Any, height: int, width: int, fps: float, fit: Fit
) -> Iterator[Frames]:
    """Decode and filter; the graph is built from the first frame, which knows its rotation."""
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    graph = None
    for decoded in container.decode(stream):
        if graph is None:
            graph = _graph(av, stream, decoded, height, width, fps, fit)
        graph.push(decoded)
        yield from _pull(av, graph)
    if graph is not None:
        graph.push(None)
        yield from _pull(av, graph)


def _graph(av: Any, stream: Any, first: Any, height: int, width: int, fps: float, fit: Fit) -> Any:
    graph = av.filter.Graph()
    rotation = round(first.rotation / 90) * 90 % 360
    H, W = first.height, first.width
    if rotation in (90, 270):
        H, W = W, H
    chain = [graph.add_buffer(template=stream), graph.add("fps", str(fps))]
    if rotation:
        name, argument = _QUARTERS[rotation]
        chain.append(graph.add(name, argument) if argument else graph.add(name))
    if rotation == 180:
        chain.append(graph.add("vflip"))
    if fit == "crop":
        left, top, right, bottom = (round(edge) for edge in _cut(H, W, height, width))
        area = f"{max(1, right - left)}:{max(1, bottom - top)}:{left}:{top}:exact=1"
        chain.append(graph.add("crop", area))
    if fit == "pad":
        rows, columns = _inside(H, W, height, width)
        chain.append(graph.add("scale", f"{columns}:{rows}:flags=bicubic"))
    else:
        chain.append(graph.add("scale", f"{width}:{height}:flags=bicubic"))
    chain.append(graph.add("format", "pix_fmts=rgb24"))
    if fit == "pad":  # behind the conversion: planes with halved colours cannot be padded oddly
        left, top = (width - columns) // 2, (height - rows) // 2
        chain.append(graph.add("pad", f"{width}:{height}:{left}:{top}:black"))
    chain.append(graph.add("buffersink"))
    graph.link_nodes(*chain).configure()
    return graph


def _pull(av: Any, graph: Any) -> Iterator[Frames]:
    while True:
        try:
            frame = graph.pull()
        except (av.error.BlockingIOError, av.error.EOFError):
            return
        pixels: Frames = frame.to_ndarray(format="rgb24")
        yield pixels
