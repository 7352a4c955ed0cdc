"""Pictures and videos of any size, rate and orientation become frames; damage is named."""

import struct
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from magi_world.errors import ConfigError, MediaError, MissingPackage
from magi_world.media.reading import Fit, Frames, _cut, _inside, read_image, read_video

av = pytest.importorskip("av")


def quarters(height: int, width: int) -> Frames:
    """Red, green, blue and white in the four corners."""
    picture = np.zeros((height, width, 3), np.uint8)
    h, w = height // 2, width // 2
    picture[:h, :w, 0] = picture[:h, w:, 1] = picture[h:, :w, 2] = 200
    picture[h:, w:] = 200
    return picture


def corners(frame: Frames) -> list[str]:
    """Colour near each corner, clockwise from the top left."""
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    points = [frame[3, 3], frame[3, -4], frame[-4, -4], frame[-4, 3]]
    return [names.get((p[0] > 100, p[1] > 100, p[2] > 100), "black") for p in points]


def write_video(path: Path, frames: Frames, rate: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.options = "yuv444p", {"crf": "1"}
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = index, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def ramp(count: int, height: int = 32, width: int = 48) -> Frames:
    levels = np.arange(count, dtype=np.uint8) * 8
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).copy()


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp", "a.gif"])
def test_a_picture_of_the_right_size_comes_as_it_is(tmp_path: Path, name: str) -> None:
    picture = quarters(32, 48)
    Image.fromarray(picture).save(tmp_path / name, lossless=True)
    frame = read_image(tmp_path / name, 32, 48)
    assert frame.dtype == np.uint8
    assert frame.flags.writeable
    assert np.array_equal(frame, picture)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_another_size(tmp_path: Path, fit: Fit) -> None:
    Image.fromarray(quarters(60, 120)).save(tmp_path / "a.png")
    frame = read_image(tmp_path / "a.png", 64, 64, fit=fit)
    assert frame.shape == (64, 64, 3)
    if fit == "pad":
        assert not frame[:15].any() and not frame[-15:].any()
        frame = frame[16:48]
    assert corners(frame) == ["red", "green", "white", "blue"]


def test_modes_of_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    grey = np.full((8, 8), 120, np.uint8)
    for mode in ("L", "RGB", "RGBA", "P", "1", "CMYK"):
        picture = Image.fromarray(grey).convert(mode)
        picture.save(path if mode != "CMYK" else tmp_path / "a.tiff")
        read = read_image(path if mode != "CMYK" else tmp_path / "a.tiff", 8, 8)
        if mode != "1":
            assert abs(int(read[4, 4, 1]) - 120) <= 1
    Image.fromarray(np.full((8, 8), 120 * 256, np.uint16)).save(path)
    assert (read_image(path, 8, 8) == 120).all()
    Image.new("RGBA", (8, 8), (200, 200, 200, 0)).save(path)
    assert not read_image(path, 8, 8).any()


def test_the_camera_was_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to see it upright
    Image.fromarray(quarters(32, 48)).save(tmp_path / "a.png", exif=exif)
    assert corners(read_image(tmp_path / "a.png", 48, 32)) == ["blue", "red", "green", "white"]


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    with pytest.raises(MediaError, match="a.png is not there"):
        read_image(path, 8, 8)
    with pytest.raises(MediaError, match="is a folder"):
        read_image(tmp_path, 8, 8)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:20], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(MediaError, match="cannot be read as a picture"):
            read_image(path, 8, 8)


# ---------------------------------------------------------------- videos


@pytest.mark.parametrize(("rate", "fps"), [(24, 24), (30, 24), (12, 24), (50, 10)])
def test_another_rate_takes_the_nearest_frames(tmp_path: Path, rate: int, fps: int) -> None:
    frames = ramp(24)
    video = read_video(write_video(tmp_path / "a.mp4", frames, rate), 32, 48, fps)
    assert abs(len(video) - 24 * fps / rate) <= 1
    levels = video[:, 16, 24, 0].astype(int) / 8
    shown = np.arange(len(video)) / fps * rate  # frame under the moment of the output
    assert np.abs(levels - shown).max() <= max(1.0, rate / fps)
    if rate == fps:
        assert np.abs(video.astype(int) - frames).max() <= 2


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("size", [(64, 64), (33, 31), (16, 96)])
def test_a_video_of_another_size(tmp_path: Path, fit: Fit, size: tuple[int, int]) -> None:
    source = np.broadcast_to(quarters(60, 120), (3, 60, 120, 3))
    video = read_video(write_video(tmp_path / "a.mp4", source, 24), *size, 24, fit=fit)
    assert video.shape == (3, *size, 3)
    assert video.dtype == np.uint8
    frame = video[1]
    if fit == "pad":
        lit = frame.max(axis=2) > 60
        rows, columns = np.flatnonzero(lit.any(1)), np.flatnonzero(lit.any(0))
        frame = frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert abs(frame.shape[1] / frame.shape[0] - 2) < 0.3
    assert corners(frame) == ["red", "green", "white", "blue"]


@pytest.mark.parametrize(
    ("matrix", "seen"),
    [
        ((0, 1, -1, 0), ["blue", "red", "green", "white"]),  # a telephone held upright
        ((-1, 0, 0, -1), ["white", "blue", "red", "green"]),
        ((0, -1, 1, 0), ["green", "white", "blue", "red"]),
    ],
)
def test_the_telephone_was_turned(tmp_path: Path, matrix: tuple[int, ...], seen: list[str]) -> None:
    source = np.broadcast_to(quarters(64, 96), (3, 64, 96, 3))
    path = write_video(tmp_path / "a.mp4", source, 24)
    content = bytearray(path.read_bytes())
    a, b, c, d = (x << 16 for x in matrix)
    place = content.index(b"tkhd") + 44  # the matrix of the track header, version 0
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    size = (64, 96) if seen[0] == "white" else (96, 64)
    assert corners(read_video(path, *size, 24)[0]) == seen


def test_either_end_of_a_long_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", ramp(20), 24)
    whole = read_video(path, 32, 48, 24)
    assert np.array_equal(read_video(path, 32, 48, 24, max_frames=5), whole[:5])
    assert np.array_equal(read_video(path, 32, 48, 24, max_frames=5, keep="last"), whole[-5:])
    assert np.array_equal(read_video(path, 32, 48, 24, max_frames=99), whole)


def test_unreadable_videos_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(MediaError, match="a.mp4 is not there"):
        read_video(path, 8, 8, 24)
    for content in (b"", b"text"):
        path.write_bytes(content)
        with pytest.raises(MediaError, match="cannot be read as a video"):
            read_video(path, 8, 8, 24)
    whole = write_video(path, ramp(20), 24).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # the index of an MP4 lies at its end
    with pytest.raises(MediaError, match="cannot be read as a video"):
        read_video(path, 8, 8, 24)


def test_a_video_with_nothing_to_see_is_named(tmp_path: Path) -> None:
    sound = tmp_path / "a.wav"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(MediaError, match="holds no video"):
        read_video(sound, 8, 8, 24)
    empty = tmp_path / "a.avi"
    with av.open(str(empty), "w") as container:
        stream = container.add_stream("mjpeg", rate=24)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuvj420p"
        container.start_encoding()
    with pytest.raises(MediaError, match=r"a\.avi"):
        read_video(empty, 8, 8, 24)


# ---------------------------------------------------------------- arguments


def test_wrong_arguments_come_before_the_file() -> None:
    with pytest.raises(ConfigError, match="size 0x8"):
        read_image("absent", 0, 8)
    with pytest.raises(ConfigError, match="fit 'squeeze'"):
        read_image("absent", 8, 8, fit="squeeze")  # type: ignore[arg-type]
    for arguments in ({"fps": 0}, {"fps": 24, "max_frames": 0}, {"fps": 24, "keep": "middle"}):
        with pytest.raises(ConfigError, match="fps"):
            read_video("absent", 8, 8, **arguments)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingPackage, match=r"'pillow': pip install 'magi-world\[video\]'"):
        read_image("a.png", 8, 8)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackage, match=r"'av': pip install 'magi-world\[video\]'"):
        read_video("a.mp4", 8, 8, 24)


sides = st.integers(1, 5000)


@given(sides, sides, sides, sides)
def test_boxes_stay_inside_and_keep_the_ratio(H: int, W: int, height: int, width: int) -> None:
    left, top, right, bottom = _cut(H, W, height, width)
    assert 0 <= left < right <= W and 0 <= top < bottom <= H
    assert (right - left) * height == pytest.approx((bottom - top) * width, rel=1e-6)
    rows, columns = _inside(H, W, height, width)
    assert 1 <= rows <= height and 1 <= columns <= width
    assert rows == height or columns == width
