"""Motion in pixels, and pairs that hold the moment before a chunk and the chunk."""

import numpy as np
import pytest
import torch

from magi_world.errors import DatasetError
from magi_world.evaluation.motion import (
    GRIDS,
    blur,
    chunks_held,
    episode_pairs,
    grey,
    join_pairs,
    motion_features,
    pairs_of,
)
from magi_world.training.episodes import EpisodeData


@pytest.mark.parametrize("shift", [-0.5, 0.0, 0.75])
def test_motion_is_measured_in_pixels(shift: float) -> None:
    columns = np.arange(64)
    frames = [127 + 100 * np.sin((columns - shift * t) * 2 * np.pi / 32) for t in range(3)]
    pictures = np.stack(frames)[None, :, None, :].repeat(64, axis=2).astype(np.uint8)
    grid = GRIDS[0]
    features = motion_features(torch.from_numpy(pictures))[0, : 10 * grid**2]
    features = features.reshape(5, 2, grid, grid)
    inside = features[:, :, :, 1:-1]
    assert torch.allclose(inside[0], torch.tensor(shift), atol=0.1)
    assert torch.allclose(inside[1], torch.tensor(0.0), atol=0.1)
    turned = motion_features(torch.from_numpy(pictures).mT)[0, : 10 * grid**2]
    assert torch.allclose(turned.reshape(5, 2, grid, grid)[1], features[0].mT, atol=1e-5)


def test_grey_is_the_mean_of_the_colours() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 3, 3), np.uint8)
    assert (grey(frames) == frames.astype(int).sum(-1) // 3).all()


def test_pairs_hold_the_moment_before_and_the_chunk() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 4, 16, 16, 3), np.uint8)
    pairs = pairs_of(frames, np.array([0, 2, 2, 0]))
    assert pairs.actions.tolist() == [2, 2, 0]
    assert pairs.held.tolist() == [1, 2, 1]
    longer = pairs_of(frames, np.array([1, 2, 2, 2, 2, 0]))
    assert longer.actions.tolist() == [2, 2, 0]
    assert longer.held.tolist() == [3, 4, 1]
    seen = grey(np.concatenate([frames[1, 2:], frames[2]]))
    expected = motion_features(torch.from_numpy(seen)[None])
    assert torch.allclose(torch.from_numpy(pairs.motion[1:2]), expected.half(), atol=1e-2)


def test_chunks_in_a_row_are_counted() -> None:
    assert chunks_held(np.array([1, 1, 0, 2, 2, 2])).tolist() == [1, 2, 1, 1, 2, 3]
    assert chunks_held(np.array([], np.int64)).tolist() == []


def test_blur_softens_and_keeps_the_brightness() -> None:
    frames = np.random.default_rng(0).integers(60, 196, (5, 4, 32, 32, 3), np.uint8)
    soft = blur(frames, np.random.default_rng(1))
    assert soft.shape == frames.shape and soft.dtype == np.uint8
    assert (np.abs(soft.mean(axis=(1, 2, 3)) - frames.mean(axis=(1, 2, 3))) < 3).all()
    assert (soft.std(axis=(1, 2, 3)) < frames.std(axis=(1, 2, 3))).all()
    assert (blur(frames, np.random.default_rng(1)) == soft).all()


def test_joining_pairs(episodes: list[EpisodeData]) -> None:
    (part,) = episode_pairs(episodes[0])
    assert len(part) == int((episodes[0].valid_frames == 4).sum()) - 1
    joined = join_pairs([part, part])
    assert len(joined) == 2 * len(part) and joined.motion.shape[1] == part.motion.shape[1]
    with pytest.raises(DatasetError, match="no two consecutive chunks"):
        join_pairs([])
