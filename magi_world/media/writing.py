"""Video written chunk by chunk, playable at every moment.

The file is a fragmented MP4: after a header every frame is a fragment of its own, and the encoder
looks at no frame ahead. What has been appended is on disk when `append` returns, all but its last
frame, whose length only the next one tells. A process that is killed therefore leaves a file that
plays up to there; nothing needs to be repaired.
"""

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
import numpy.typing as npt

from magi_world.errors import ConfigError, MediaError, missing_package

if TYPE_CHECKING:
    from av.container import OutputContainer

CODEC = "libx264"
_ENCODER = {"crf": "16", "tune": "zerolatency"}
_CONTAINER = {
    "movflags": "frag_every_frame+empty_moov+default_base_moof",
    "flush_packets": "1",
}
_BT709 = 1  # the number of this colour space, its primaries and its transfer in H.264


def require_av() -> None:
    """Raise `MissingPackage` where PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise missing_package("av", "video", "writing a video") from error


class VideoWriter:
    """An MP4 file (H.264, 4:2:0, BT.709) that grows by `append`.

    The constructor checks everything that can be checked and touches no file: an encoder is opened
    and tried in memory. The file appears, and replaces an older one, with the first frames.

        with VideoWriter("out.mp4", fps=24, height=480, width=832) as writer:
            for chunk in chunks:
                writer.append(chunk.frames)

    Attributes:
        path: the file.
        num_frames: frames appended so far.
    """

    def __init__(self, path: str | Path, *, fps: float, height: int, width: int) -> None:
        """Check the arguments, the folder and the encoder.

        Args:
            path: a name that ends with `.mp4`; folders above it are made when needed.
            fps: frames per second.
            height: of the frames in pixels, even.
            width: likewise.

        Raises:
            ConfigError: a size or rate that H.264 cannot have.
            MediaError: a name without `.mp4`, a folder of that name, a place that cannot be
                written to, or an FFmpeg without an H.264 encoder.
            MissingPackage: PyAV is not installed.
        """
        self.path = Path(path)
        self.num_frames = 0
        self._rate = Fraction(fps).limit_denominator(1001)
        self._shape = (height, width, 3)
        if min(height, width) < 2 or height % 2 or width % 2:
            raise ConfigError(f"frames of {height}x{width}: H.264 needs even sizes from 2 on")
        if self._rate <= 0:
            raise ConfigError(f"fps {fps}: a positive number is needed")
        require_av()
        check_place(self.path)
        try:
            with _Stream(io.BytesIO(), self._rate, height, width, self.path) as trial:
                trial.encode(np.zeros(self._shape, np.uint8))
        except MediaError as error:
            raise MediaError(
                f"{self.path}: {CODEC} takes no frames of {height}x{width} here: {error.__cause__}"
            ) from error.__cause__
        self._stream: _Stream | None = None
        self._file: BinaryIO | None = None

    def append(self, frames: npt.NDArray[np.uint8]) -> None:
        """Write frames uint8 `[T, H, W, 3]`, RGB, behind those before.

        Raises:
            MediaError: other frames than announced, or a disk that takes no more. What was
                written before stays.
        """
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != self._shape:
            raise MediaError(
                f"{self.path}: frames are {frames.dtype} {frames.shape}, "
                f"expected uint8 [T, *{self._shape}]"
            )
        if self._stream is None:
            with _named(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("wb", buffering=0)
            height, width, _ = self._shape
            self._stream = _Stream(self._file, self._rate, height, width, self.path)
        for frame in frames:
            self._stream.encode(frame)
            self.num_frames += 1

    def close(self) -> None:
        """Finish the file; closing again does nothing. Without frames there is no file.

        Raises:
            MediaError: a disk that takes no more.
        """
        stream, file, self._stream, self._file = self._stream, self._file, None, None
        try:
            if stream is not None:
                stream.close()
        finally:
            if file is not None:
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Stream:
    """An open encoder whose packets go to a file object as they come."""

    def __init__(
        self, target: BinaryIO, rate: Fraction, height: int, width: int, path: Path
    ) -> None:
        import av
        from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

        self._path = path
        self._frame_of: Any = av.VideoFrame.from_ndarray
        self._reformatter = VideoReformatter()
        # BT.709 and limited range, said in the stream: players guess by the size otherwise
        self._format: dict[str, Any] = {
            "format": "yuv420p",
            "dst_colorspace": Colorspace.ITU709,
            "dst_color_range": ColorRange.MPEG,
        }
        with _named(path):
            self._container: OutputContainer = av.open(
                target, mode="w", format="mp4", options=_CONTAINER
            )
            self._stream: Any = self._container.add_stream(CODEC, rate=rate, options=_ENCODER)
        context: Any = self._stream.codec_context
        context.height, context.width, context.pix_fmt = height, width, "yuv420p"
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = ColorRange.MPEG.value

    def encode(self, frame: npt.NDArray[np.uint8]) -> None:
        """Write one frame `[H, W, 3]`."""
        with _named(self._path):
            picture = self._frame_of(np.ascontiguousarray(frame))
            picture = self._reformatter.reformat(picture, **self._format)
            self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        with _named(self._path):
            try:
                self._container.mux(self._stream.encode())
            finally:
                self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn what the system or FFmpeg says into a `MediaError` with the file's name."""
    import av.error
    from av.codec.codec import UnknownCodecError

    try:
        yield
    except (OSError, av.error.FFmpegError, UnknownCodecError) as error:
        raise MediaError(f"{path}: cannot be written: {error}") from error


def check_place(path: Path) -> None:
    """Check that an MP4 file can be made at a path, without making it.

    Raises:
        MediaError: another suffix, a folder of that name, or a folder above it that takes no file.
    """
    if path.suffix.lower() != ".mp4":
        raise MediaError(f"{path}: the name of a video must end with .mp4")
    if path.is_dir():
        raise MediaError(f"{path} is a folder, the name of a file is needed")
    place = existing_parent(path)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise MediaError(f"{path}: cannot be written in {place}: {error}") from None
    if path.exists() and not os.access(path, os.W_OK):
        raise MediaError(f"{path}: is there already and may not be changed")


def existing_parent(path: Path) -> Path:
    """The nearest folder above a path that exists."""
    absolute = path.absolute()
    return next(parent for parent in absolute.parents if parent.exists())
