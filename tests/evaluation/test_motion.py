"""Motion in pixels, and pairs that hold the moment before a chunk and the chunk."""

import numpy as np
import pytest
import torch

from magi_world.errors import DatasetError
from magi_world.evaluation.motion import (
    GRID,
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
    features = motion_features(torch.from_numpy(pictures)).reshape(5, 2, GRID, GRID)
    inside = features[:, :, :, 1:-1]
    assert torch.allclose(inside[0], torch.tensor(shift), atol=0.1)
    assert torch.allclose(inside[1], torch.tensor(0.0), atol=0.1)
    turned = motion_features(torch.from_numpy(pictures).mT).reshape(5, 2, GRID, GRID)
    assert torch.allclose(turned[1], features[0].mT, atol=1e-5)


def test_grey_is_the_mean_of_the_colours() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 3, 3, 3), np.uint8)
    assert (grey(frames) == frames.astype(int).sum(-1) // 3).all()


def test_pairs_hold_the_moment_before_and_the_chunk() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 4, 16, 16, 3), np.uint8)
    pairs = pairs_of(frames, np.array([0, 2, 1, 0]))
    assert pairs.actions.tolist() == [2, 1, 0]
    assert pairs.before.tolist() == [0, 2, 1]
    seen = grey(np.concatenate([frames[1, 2:], frames[2]]))
    expected = motion_features(torch.from_numpy(seen)[None])
    assert torch.allclose(torch.from_numpy(pairs.motion[1:2]), expected, atol=1e-5)


def test_joining_pairs(episodes: list[EpisodeData]) -> None:
    (part,) = episode_pairs(episodes[0])
    assert len(part) == int((episodes[0].valid_frames == 4).sum()) - 1
    joined = join_pairs([part, part])
    assert len(joined) == 2 * len(part) and joined.motion.shape[1] == part.motion.shape[1]
    with pytest.raises(DatasetError, match="no two consecutive chunks"):
        join_pairs([])
