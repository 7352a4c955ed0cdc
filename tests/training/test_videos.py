"""Folders of videos with a table of prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magi_world.config import WorldConfig
from magi_world.errors import DatasetError
from magi_world.evaluation.video import write_mp4
from magi_world.training.collect import is_held_out
from magi_world.training.reading import Reading
from magi_world.training.sources import check_sources, find_sources, read_source
from tests.tiny_world import tiny_card

pytest.importorskip("av")

FPS = 10
TABLE = """file,start_second,prompt
b.mp4,0,strafe left
b.mp4,1.1,please stand still
a.mp4,0.0,strafe right
"""


def card() -> dict[str, Any]:
    return tiny_card()


def config(**changes: Any) -> WorldConfig:
    return WorldConfig.from_dict({**tiny_card()["config"], "fps": FPS, **changes})


def film(path: Path, frames: int, size: tuple[int, int] = (64, 64), fps: int = FPS) -> None:
    """A video whose brightness grows by five a frame."""
    write_mp4(path, (np.full((*size, 3), 5 * i, np.uint8) for i in range(frames)), fps)


def folder(path: Path, table: str = TABLE) -> Path:
    film(path / "a.mp4", 14)
    film(path / "b.mp4", 21)
    (path / "prompts.csv").write_text(table, encoding="utf-8")
    return path


def read(path: Path, reading: Reading | None = None) -> list[Any]:
    reading = reading or Reading()
    assert find_sources([path]) == [path]
    check_sources([path], card(), config(), reading)
    return list(read_source(path, card(), config(), reading))


def test_a_video_is_an_episode(tmp_path: Path) -> None:
    first, second = read(folder(tmp_path), Reading(mixed_actions="majority"))
    assert first.frames.shape == (4, 4, 64, 64, 3) and second.frames.shape == (6, 4, 64, 64, 3)
    assert first.actions.tolist() == [2, 2, 2]
    shown = second.frames[..., 32, 32, 0].astype(int).round(-1) // 5
    assert np.abs(shown.reshape(-1) - [0, 0, 0, 0, *range(1, 21)]).max() <= 1
    # 1.1 seconds: frame 11, which step 10 leads to, the third of its chunk and so half of it
    assert second.actions.tolist() == [1, 1, 1, 0, 0]
    assert not second.rewards.any() and second.health is None
    assert (second.terminated, second.truncated) == (False, True)
    assert [is_held_out(episode.seed) for episode in (first, second)] == [False, True]


def test_places_may_be_chunks(tmp_path: Path) -> None:
    table = "chunk,file,prompt\n0,a.mp4,strafe left\n2,a.mp4,stand still\n0,b.mp4,stand still\n"
    first, _ = read(folder(tmp_path, table))
    assert first.actions.tolist() == [1, 1, 0]


def test_a_faster_video_is_thinned_and_another_size_shrunk(tmp_path: Path) -> None:
    path = folder(tmp_path)
    for name in ("a.mp4", "b.mp4"):
        film(path / name, 30, size=(96, 128), fps=2 * FPS)
    with pytest.raises(DatasetError, match=r"frames of \(96, 128\).*resize = true"):
        read(path)
    first, _ = read(path, Reading(resize=True, mixed_actions="majority"))
    assert first.frames.shape == (4, 4, 64, 64, 3)
    assert abs(int(first.frames[1, 0, 0, 0, 0]) - 10) <= 2  # frame 2 of the video


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (
            "file,prompt\na.mp4,stand still\n",
            r"columns \['file', 'prompt'\], it needs file, prompt",
        ),
        ("file,start_second,prompt\na.mp4,0,stand still\n", "names 1 video, 2 are needed"),
        (TABLE + "c.mp4,0,strafe left\n", "line 5: there is no video 'c.mp4'"),
        (TABLE + "a.mp4,1,fly\n", r"line 5: the prompt 'fly' is not in the recipe, .*strafe left"),
        (TABLE + "a.mp4,soon,stand still\n", "line 5: start_second 'soon' is no number"),
        (TABLE + "a.mp4,-1,stand still\n", "line 5: start_second '-1' is no place"),
        (TABLE.replace("a.mp4,0.0", "a.mp4,0.9"), "at the beginning of 'a.mp4'"),
        (TABLE + "a.mp4,0,stand still\n", "two prompts hold at the same place of 'a.mp4'"),
        (TABLE + "a.mp4,99,stand still\n", "'a.mp4' begins behind the end .* 1.4 seconds"),
        (TABLE, r"b.mp4, steps 8 to 11: the action changes within a chunk"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path: Path, table: str, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        read(folder(tmp_path, table))


def test_videos_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = folder(tmp_path)
    film(path / "a.mp4", 14, size=(32, 64))
    with pytest.raises(DatasetError, match="frames of different sizes, a.mp4 has 64x32 .*b.mp4"):
        read(path)
    film(path / "a.mp4", 14, fps=15)
    with pytest.raises(DatasetError, match="a.mp4 has 15 frames a second, no multiple of .* 10"):
        read(path)
    film(path / "a.mp4", 3)
    with pytest.raises(DatasetError, match="a.mp4: shorter than one chunk"):
        read(path)
    film(path / "a.mp4", 14)
    whole = (path / "a.mp4").read_bytes()
    first = whole.index(b"mdat") + 4
    (path / "a.mp4").write_bytes(whole[:first] + bytes(600) + whole[first + 600 :])
    with pytest.raises(DatasetError, match="a.mp4 is damaged"):
        read(path)
    (path / "a.mp4").write_bytes(b"no video at all")
    with pytest.raises(DatasetError, match="a.mp4 cannot be read as a video"):
        read(path)


def test_videos_without_prompts_are_no_data(tmp_path: Path) -> None:
    film(tmp_path / "a.mp4", 14)
    with pytest.raises(DatasetError, match="no folder of videos with a prompts.csv"):
        find_sources([tmp_path])
