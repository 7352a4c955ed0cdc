"""Motion in pixels, and moments that hold a chunk and what was just before it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from magi_world.errors import DatasetError
from magi_world.evaluation.motion import (
    CONTEXT,
    GRIDS,
    cell_motion,
    chunks_held,
    episode_moments,
    grey,
    join_moments,
    moments_of,
    motion_features,
)
from magi_world.training.episodes import EpisodeData


def wave(shift: float, count: int = 3) -> Tensor:
    """Pictures float32 `[1, count, 64, 64]` of a wave that moves right by `shift` a frame."""
    columns = np.arange(64)
    rows = [127 + 100 * np.sin((columns - shift * t) * 2 * np.pi / 32) for t in range(count)]
    pictures = np.stack(rows)[None, :, None, :].repeat(64, axis=2)
    return torch.from_numpy(pictures.astype(np.float32))


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.75])
def test_motion_is_measured_in_pixels(shift: float) -> None:
    grid = GRIDS[0]
    pictures = wave(shift)
    motion = cell_motion(pictures[:, :-1], pictures[:, 1:])[0, : 10 * grid**2]
    motion = motion.reshape(5, 2, grid, grid)
    inside = motion[:, :, :, 1:-1]
    assert torch.allclose(inside[0], torch.tensor(shift), atol=0.05)
    assert torch.allclose(inside[1], torch.tensor(0.0), atol=0.05)
    turned = cell_motion(pictures[:, :-1].mT, pictures[:, 1:].mT)[0, : 10 * grid**2]
    assert torch.allclose(turned.reshape(5, 2, grid, grid)[1], motion[0].mT, atol=1e-5)


def test_the_whole_picture_moves_as_its_cells_do() -> None:
    pictures = wave(0.5)
    motion = cell_motion(pictures[:, :-1], pictures[:, 1:])
    assert motion.shape == (1, 5 * 2 * sum(grid**2 for grid in GRIDS))
    whole = motion[0, -10:].reshape(5, 2)
    assert torch.allclose(whole[0], torch.tensor(0.5), atol=0.1)


def test_grey_is_the_mean_of_the_colours() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 3, 3), np.uint8)
    assert (grey(frames) == frames.astype(int).sum(-1) // 3).all()


def test_a_moment_is_a_chunk_and_the_two_before_it() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 4, 16, 16, 3), np.uint8)
    moments = moments_of(frames, np.array([0, 1, 2, 2, 0]))
    assert len(moments) == 5 - CONTEXT
    assert moments.actions.tolist() == [2, 2, 0]
    assert moments.held.tolist() == [1, 2, 1]
    expected = motion_features(torch.from_numpy(grey(frames[1:4]))[None]).half()
    assert torch.allclose(torch.from_numpy(moments.motion[1:2]), expected, atol=1e-2)
    longer = moments_of(frames, np.array([1, 2, 2, 2, 2, 0]))
    assert longer.actions.tolist() == [2, 2, 0]
    assert longer.held.tolist() == [3, 4, 1]


def test_chunks_in_a_row_are_counted() -> None:
    assert chunks_held(np.array([1, 1, 0, 2, 2, 2])).tolist() == [1, 2, 1, 1, 2, 3]
    assert chunks_held(np.array([], np.int64)).tolist() == []


def test_joining_moments(episodes: list[EpisodeData]) -> None:
    (part,) = episode_moments(episodes[0])
    assert len(part) == int((episodes[0].valid_frames == 4).sum()) - CONTEXT
    joined = join_moments([part, part])
    assert len(joined) == 2 * len(part) and joined.motion.shape[1] == part.motion.shape[1]
    with pytest.raises(DatasetError, match="no three consecutive chunks"):
        join_moments([])
