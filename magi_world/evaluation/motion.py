"""Motion between neighbouring frames: what the inverse model is shown of a chunk.

An action shows as a fraction of a pixel a frame. A network on raw pixels takes very long to find
that; the least-squares motion of small cells holds it plainly.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from magi_world.errors import DatasetError
from magi_world.evaluation.clips import Episode, Integers, played, whole_chunks
from magi_world.evaluation.metrics import Frames, blocks

GRID = 8
"""the picture is cut into GRID x GRID cells"""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What the inverse model sees: the motion in a chunk and in the moment before it."""

    motion: npt.NDArray[np.float32]
    """float32 `[n, D]`: `motion_features` of the last two frames before the chunk and the chunk"""
    actions: Integers
    """int64 `[n]`: the action behind the chunk"""
    before: Integers
    """int64 `[n]`: the action behind the chunk before"""

    def __len__(self) -> int:
        return len(self.actions)


def motion_features(pictures: Tensor) -> Tensor:
    """Motion of every cell between neighbouring frames, by least squares over its pixels.

    Takes uint8 `[n, T, H, W]`; returns float32 `[n, 5 * (T - 1) * GRID * GRID]`: for each cell the
    shift across and down that explains the change best (pixels), and the logarithms of how much
    edge there is to see it by and of how much changed.
    """
    tones = pictures.float() / 64
    before, after = tones[:, :-1], tones[:, 1:]
    mean, change = (before + after) / 2, after - before
    across = F.pad((mean[..., 2:] - mean[..., :-2]) / 2, (1, 1))
    down = F.pad((mean[..., 2:, :] - mean[..., :-2, :]) / 2, (0, 0, 1, 1))

    def cells(product: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(product, GRID)

    tiny = 1e-3
    edge_across, edge_down = cells(across.square()) + tiny, cells(down.square()) + tiny
    features = [
        -cells(across * change) / edge_across,
        -cells(down * change) / edge_down,
        edge_across.log() / 4,
        edge_down.log() / 4,
        (cells(change.square()) + tiny).log() / 4,
    ]
    return torch.stack(features, dim=1).clamp(-4, 4).flatten(1)


def grey(frames: Frames) -> Frames:
    """Mean of the colours: uint8 `[..., H, W, 3]` to uint8 `[..., H, W]`."""
    tones: Frames = (frames.sum(axis=-1, dtype=np.uint16) // 3).astype(np.uint8)
    return tones


def pairs_of(frames: Frames, actions: Integers) -> Pairs:
    """Pair every chunk but the first with the one before it.

    Takes consecutive chunks uint8 `[n, F, H, W, 3]` and the action behind each, `[n]`; n >= 2.
    """
    tones = grey(frames)
    pictures = np.concatenate([tones[:-1, -2:], tones[1:]], axis=1)
    motion = [
        motion_features(torch.from_numpy(pictures[rows])) for rows in blocks(len(pictures), 256)
    ]
    return Pairs(motion=torch.cat(motion).numpy(), actions=actions[1:], before=actions[:-1])


def join_pairs(parts: Iterable[Pairs]) -> Pairs:
    """Concatenate; raises `DatasetError` when there is nothing."""
    parts = list(parts)
    if not parts:
        raise DatasetError("there are no two consecutive chunks for the inverse model")
    return Pairs(
        motion=np.concatenate([part.motion for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        before=np.concatenate([part.before for part in parts]),
    )


def episode_pairs(episode: Episode) -> list[Pairs]:
    """Pairs of the whole chunks of one episode; none if there are less than two."""
    end = whole_chunks(episode)
    return [pairs_of(episode.frames[:end], played(episode)[:end])] if end > 1 else []
