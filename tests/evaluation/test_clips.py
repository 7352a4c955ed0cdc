"""Cutting episodes to clips: whole chunks only, every chunk with its own action."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_world.errors import DatasetError
from magi_world.evaluation.clips import (
    Episode,
    cut_clips,
    played,
    whole_chunks,
)


@dataclass(frozen=True)
class FakeEpisode:
    """Chunk k shows the number k; its action is k % 3."""

    seed: int
    frames: npt.NDArray[np.uint8]
    actions: npt.NDArray[np.int64]
    valid_frames: npt.NDArray[np.int64]
    terminated: bool
    health: npt.NDArray[np.float64] | None = None

    @property
    def rewards(self) -> npt.NDArray[np.float64]:
        return np.ones(len(self.actions))


def fake_episode(chunks: int, *, last_valid: int = 4, seed: int = 0) -> FakeEpisode:
    numbers = np.arange(chunks)
    frames = np.zeros((chunks, 4, 8, 8, 3), np.uint8) + numbers[:, None, None, None, None]
    valid = np.full(chunks, 4)
    valid[-1] = last_valid
    return FakeEpisode(seed, frames.astype(np.uint8), numbers[1:] % 3, valid, last_valid < 4)


def test_whole_chunks_stop_before_a_partial_one() -> None:
    assert whole_chunks(fake_episode(7)) == 7
    assert whole_chunks(fake_episode(7, last_valid=2)) == 6
    assert whole_chunks(fake_episode(7, last_valid=0)) == 6


def test_the_reset_chunk_was_played_with_the_no_op() -> None:
    assert played(fake_episode(5)).tolist() == [0, 1, 2, 0, 1]


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    count=st.integers(1, 40),
    prefix=st.integers(1, 3),
    horizon=st.integers(1, 6),
)
def test_clips_are_consecutive_whole_and_distinct(
    lengths: list[int], count: int, prefix: int, horizon: int
) -> None:
    episodes: list[Episode] = [fake_episode(n, last_valid=2, seed=i) for i, n in enumerate(lengths)]
    places = sum(max(0, n - 1 - prefix - horizon + 1) for n in lengths)
    if not places:
        with pytest.raises(DatasetError, match=f"needs {prefix + horizon} chunks"):
            cut_clips(episodes, count, prefix=prefix, horizon=horizon, seed=0)
        return
    clips = cut_clips(episodes, count, prefix=prefix, horizon=horizon, seed=0)
    assert len(clips) == min(count, places)
    assert (clips.prefix, clips.horizon) == (prefix, horizon)
    shown = clips.frames[:, :, 0, 0, 0, 0].astype(int)
    assert (np.diff(shown, axis=1) == 1).all()
    assert (clips.actions == shown % 3).all()
    again = cut_clips(episodes, count, prefix=prefix, horizon=horizon, seed=0)
    assert (again.frames == clips.frames).all()
    part = clips[slice(0, 1)]
    assert len(part) == 1 and part.prefix == prefix
