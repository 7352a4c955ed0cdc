"""What a video writer leaves on disk, also when it is killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magi_world.errors import ConfigError, MediaError, MissingPackage
from magi_world.media import writing
from magi_world.media.writing import VideoWriter

COLOURS = [(200, 30, 60), (20, 180, 90), (250, 250, 250), (10, 60, 220)]


def chunk(colour: tuple[int, int, int], frames: int = 24) -> npt.NDArray[np.uint8]:
    """Frames of one colour, 48x64."""
    return np.broadcast_to(np.array(colour, np.uint8), (frames, 48, 64, 3))


def read(path: Path) -> npt.NDArray[np.uint8]:
    """All frames of a file."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_frames_come_back_in_number_size_rate_and_colour(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.mp4"
    with VideoWriter(path, fps=24, height=48, width=64) as writer:
        for colour in COLOURS:
            writer.append(chunk(colour))
        assert writer.num_frames == 96
    frames = read(path)
    assert frames.shape == (96, 48, 64, 3)
    for index, colour in enumerate(COLOURS):
        shown = frames[24 * index : 24 * (index + 1)].astype(int)
        assert abs(shown - np.array(colour)).max() <= 3
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 24 and stream.codec_context.name == "h264"
        assert container.duration == 4_000_000
        assert stream.codec_context.colorspace == 1  # BT.709


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_chunks_of_any_length_add_up(
    lengths: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    with VideoWriter(path, fps=35, height=48, width=64) as writer:
        for length in lengths:
            writer.append(chunk(COLOURS[0], length))
    if sum(lengths):
        assert len(read(path)) == sum(lengths)


def test_the_file_is_playable_after_every_chunk(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    writer = VideoWriter(path, fps=24, height=48, width=64)
    assert not path.exists()
    for index, colour in enumerate(COLOURS, start=1):
        writer.append(chunk(colour))
        assert len(read(path)) >= 24 * index - 1
    writer.close()
    writer.close()
    assert len(read(path)) == 96


WRITE_AND_WAIT = """
import sys, time
import numpy as np
from magi_world.media.writing import VideoWriter

writer = VideoWriter(sys.argv[1], fps=24, height=48, width=64)
for level in (40, 120, 200):
    writer.append(np.full((24, 48, 64, 3), level, np.uint8))
print("written", flush=True)
time.sleep(600)
"""


def test_a_killed_process_leaves_all_but_the_last_frame(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    command = [sys.executable, "-c", WRITE_AND_WAIT, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    frames = read(path)
    assert len(frames) in (71, 72)
    for index, level in enumerate((40, 120, 200)):
        assert abs(frames[24 * index].astype(int) - level).max() <= 3


def test_an_error_between_chunks_leaves_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with pytest.raises(KeyboardInterrupt), VideoWriter(path, fps=24, height=48, width=64) as writer:
        writer.append(chunk(COLOURS[0]))
        raise KeyboardInterrupt
    assert len(read(path)) == 24


def test_an_older_file_stays_until_there_are_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"older")
    with VideoWriter(path, fps=24, height=48, width=64):
        pass
    assert path.read_bytes() == b"older"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"height": 47}, ConfigError, "even sizes"),
        ({"width": 0}, ConfigError, "even sizes"),
        ({"fps": 0}, ConfigError, "fps 0"),
        ({"fps": -1.5}, ConfigError, "fps"),
        ({"height": 20000, "width": 20000}, MediaError, "takes no frames of 20000x20000"),
        ({"path": "a.avi"}, MediaError, "must end with .mp4"),
        ({"path": "folder.mp4"}, MediaError, "is a folder"),
        ({"path": "file/a.mp4"}, MediaError, "cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused_at_once(
    change: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    arguments: dict[str, Any] = {"path": "a.mp4", "fps": 24, "height": 48, "width": 64} | change
    arguments["path"] = tmp_path / arguments["path"]
    with pytest.raises(error, match=words):
        VideoWriter(**arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.mp4"]


def test_an_ffmpeg_without_the_encoder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "CODEC", "libnothing")
    with pytest.raises(MediaError, match=r"a\.mp4.*libnothing"):
        VideoWriter(tmp_path / "a.mp4", fps=24, height=48, width=64)


def test_pyav_is_named_when_it_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackage, match=r"pip install 'magi-world\[video\]'"):
        VideoWriter(tmp_path / "a.mp4", fps=24, height=48, width=64)


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((4, 48, 64, 3), np.float32),
        np.zeros((48, 64, 3), np.uint8),
        np.zeros((4, 64, 48, 3), np.uint8),
    ],
)
def test_other_frames_than_announced_are_refused(frames: npt.NDArray[Any], tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "a.mp4", fps=24, height=48, width=64) as writer:
        with pytest.raises(MediaError, match="expected uint8"):
            writer.append(frames)
    assert not (tmp_path / "a.mp4").exists()


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    link = tmp_path / "a.mp4"
    link.symlink_to("/dev/full")
    match = r"a\.mp4: cannot be written.*space"
    with (
        pytest.raises(MediaError, match=match),
        VideoWriter(link, fps=24, height=48, width=64) as writer,
    ):
        writer.append(chunk(COLOURS[0]))
