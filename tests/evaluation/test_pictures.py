"""Strips, labels and videos."""

import sys
from pathlib import Path

import numpy as np
import pytest

from magi_world.errors import MissingPackage
from magi_world.evaluation.strips import GAP, strip, write_png
from magi_world.evaluation.video import LABEL_HEIGHT, enlarge, label_bar, side_by_side, write_mp4


def test_enlarge_repeats_pixels() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 5, 3), np.uint8)
    large = enlarge(frames, 3)
    assert large.shape == (2, 9, 15, 3)
    assert (large[:, ::3, 1::3] == frames).all()


def test_a_label_is_written() -> None:
    bar = label_bar("real", 60)
    assert bar.shape == (LABEL_HEIGHT, 60, 3)
    assert bar.max() > 200 > 50 > label_bar("", 60).max()


def test_a_strip_stacks_its_rows(tmp_path: Path) -> None:
    real = np.full((5, 8, 8, 3), 200, np.uint8)
    dream = np.full((5, 8, 8, 3), 90, np.uint8)
    picture = strip([("real", real), ("dream", dream)], scale=2)
    assert picture.shape == (2 * (LABEL_HEIGHT + 16 + GAP), 5 * (16 + GAP), 3)
    assert (picture[LABEL_HEIGHT, 0] == 200).all()
    assert (picture[2 * LABEL_HEIGHT + 16 + GAP, 0] == 90).all()
    write_png(tmp_path / "strip.png", picture)
    assert (tmp_path / "strip.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="one shape"):
        strip([("real", real), ("dream", dream[:3])])


def test_side_by_side_holds_the_shorter_clip() -> None:
    left = np.arange(3, dtype=np.uint8)[:, None, None, None].repeat(8, 1).repeat(8, 2).repeat(3, 3)
    right = left[:1] + 100
    both = side_by_side(left, right, ("real", "dream"), scale=2)
    assert both.shape == (3, LABEL_HEIGHT + 16, 32, 3)
    assert both[:, -1, 0, 0].tolist() == [0, 1, 2]
    assert both[:, -1, -1, 0].tolist() == [100, 100, 100]
    with pytest.raises(ValueError, match="side by side"):
        side_by_side(left, right[:0], ("real", "dream"))


def test_an_mp4_can_be_read_again(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    frames = (np.full((32, 48, 3), level, np.uint8) for level in (20, 120, 220, 220))
    assert write_mp4(path, frames, 35) == 4
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate) == pytest.approx(35)
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert [round(float(frame.mean()), -1) for frame in read] == [20, 120, 220, 220]


def test_what_a_video_refuses(tmp_path: Path) -> None:
    frame = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match="no frames"):
        write_mp4(tmp_path / "a.mp4", [], 35)
    with pytest.raises(ValueError, match="even sizes"):
        write_mp4(tmp_path / "b.mp4", [frame[:31]], 35)
    with pytest.raises(ValueError, match="frame 1"):
        write_mp4(tmp_path / "c.mp4", [frame, frame[:16]], 35)


def test_a_missing_pyav_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackage, match=r"magi-world\[video\]"):
        write_mp4(tmp_path / "a.mp4", [np.zeros((32, 32, 3), np.uint8)], 35)
