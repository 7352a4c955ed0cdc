"""Motion of pictures: what the inverse model is shown of a chunk.

An action shows as a fraction of a pixel a frame. A network on raw pixels takes very long to find
that; the least-squares motion of small cells holds it plainly. Motion is measured twice: from frame
to frame, and from the end of a chunk to the end of the next, where it is larger and does not depend
on how smoothly a chunk moves within itself.
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
from magi_world.evaluation.metrics import Frames, Mask, blocks

CONTEXT = 2
"""chunks before the judged one that are looked at"""
GRIDS = (8, 4, 2, 1)
"""a picture is cut into 8 x 8 cells, then 4 x 4, and so on: small cells tell places apart, large
ones still see motion where fine texture is lost"""


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Chunks as the inverse model sees them: the motion in each, and in the two before it."""

    motion: npt.NDArray[np.float16]
    """float16 `[n, D]`"""
    actions: Integers
    """int64 `[n]`: the action behind the chunk"""
    held: Integers
    """int64 `[n]`: chunks in a row, this one included, that had the action; 1 after a change"""

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, rows: Mask) -> "Moments":
        """Those that a mask, bool `[n]`, keeps."""
        return Moments(motion=self.motion[rows], actions=self.actions[rows], held=self.held[rows])


def cell_motion(before: Tensor, after: Tensor) -> Tensor:
    """Motion of cells from one picture to another, by least squares over their pixels.

    Takes two `[n, T, H, W]` in byte units, both sides multiples of 8; returns float32 `[n, D]`,
    D = 5 * T * cells: for each cell the shift across and down that explains the change best
    (pixels), and the logarithms of how much edge there is to see it by and of how much changed.
    """
    before, after = before / 64, after / 64
    mean, change = (before + after) / 2, after - before
    across = F.pad((mean[..., 2:] - mean[..., :-2]) / 2, (1, 1))
    down = F.pad((mean[..., 2:, :] - mean[..., :-2, :]) / 2, (0, 0, 1, 1))
    products = (
        across.square(), down.square(), across * change, down * change, change.square(),
    )  # fmt: skip
    finest = [F.adaptive_avg_pool2d(product, GRIDS[0]) for product in products]
    tiny = 1e-3
    features = []
    for grid in GRIDS:
        cells = [F.adaptive_avg_pool2d(product, grid) for product in finest]
        edge_across, edge_down, move_across, move_down, changed = cells
        of_grid = [
            -move_across / (edge_across + tiny),
            -move_down / (edge_down + tiny),
            (edge_across + tiny).log() / 4,
            (edge_down + tiny).log() / 4,
            (changed + tiny).log() / 4,
        ]
        features.append(torch.stack(of_grid, dim=1).clamp(-4, 4).flatten(1))
    return torch.cat(features, dim=1)


def motion_features(tones: Tensor) -> Tensor:
    """Motion in three consecutive chunks, uint8 `[n, 3, F, H, W]`: float32 `[n, D]`.

    From frame to frame in the last chunk and just before it, and, at half the resolution, from the
    last frame of each chunk to that of the next.
    """
    tones = tones.float()
    fine = torch.cat([tones[:, 1, -2:], tones[:, 2]], dim=1)
    ends = F.avg_pool2d(tones[:, :, -1], 2)
    moves = [cell_motion(fine[:, :-1], fine[:, 1:]), cell_motion(ends[:, :-1], ends[:, 1:])]
    return torch.cat(moves, dim=1)


def grey(frames: Frames) -> Frames:
    """Mean of the colours: uint8 `[..., H, W, 3]` to uint8 `[..., H, W]`."""
    tones: Frames = (frames.sum(axis=-1, dtype=np.uint16) // 3).astype(np.uint8)
    return tones


def chunks_held(actions: Integers) -> Integers:
    """How many chunks in a row, each included, had its action: int64 `[n]` for int64 `[n]`."""
    held = np.ones(len(actions), np.int64)
    for index in range(1, len(actions)):
        if actions[index] == actions[index - 1]:
            held[index] = held[index - 1] + 1
    return held


def moments_of(frames: Frames, actions: Integers) -> Moments:
    """Cut consecutive chunks uint8 `[n, F, H, W, 3]`, n > CONTEXT, into n - CONTEXT moments.

    `actions` are those behind the chunks; it may begin with those of earlier chunks, so that it is
    known for how long one was held.
    """
    tones = torch.from_numpy(grey(frames))
    count = len(tones) - CONTEXT
    triples = torch.stack([tones[:-2], tones[1:-1], tones[2:]], dim=1)
    motion = [motion_features(triples[rows]).half() for rows in blocks(count, 256)]
    return Moments(
        motion=torch.cat(motion).numpy(),
        actions=actions[-count:],
        held=chunks_held(actions)[-count:],
    )


def join_moments(parts: Iterable[Moments]) -> Moments:
    """Concatenate; raises `DatasetError` when there is nothing."""
    parts = list(parts)
    if not parts:
        raise DatasetError("there are no three consecutive chunks for the inverse model")
    return Moments(
        motion=np.concatenate([part.motion for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        held=np.concatenate([part.held for part in parts]),
    )


def episode_moments(episode: Episode) -> list[Moments]:
    """Moments of the whole chunks of one episode; none if there are too few."""
    end = whole_chunks(episode)
    if end <= CONTEXT:
        return []
    return [moments_of(episode.frames[:end], played(episode)[:end])]
