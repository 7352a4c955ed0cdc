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

GRIDS = (8, 4, 2, 1)
"""the picture is cut into 8 x 8 cells, then 4 x 4, and so on: small cells tell places apart, large
ones still see motion where fine texture is lost"""
LONG = 4
"""chunks under one action after which it counts as held for long"""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What the inverse model sees: the motion in a chunk and in the moment before it."""

    motion: npt.NDArray[np.float16]
    """float16 `[n, D]`: `motion_features` of the last two frames before the chunk and the chunk"""
    actions: Integers
    """int64 `[n]`: the action behind the chunk"""
    held: Integers
    """int64 `[n]`: chunks in a row, this one included, that had the action; 1 after a change"""

    def __len__(self) -> int:
        return len(self.actions)


def motion_features(pictures: Tensor) -> Tensor:
    """Motion of cells between neighbouring frames, by least squares over their pixels.

    Takes `[n, T, H, W]` in byte units; returns float32 `[n, 5 * (T - 1) * cells]`: for each cell
    the shift across and down that explains the change best (pixels), and the logarithms of how
    much edge there is to see it by and of how much changed.
    """
    tones = pictures.float() / 64
    before, after = tones[:, :-1], tones[:, 1:]
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


def blur(frames: Frames, rng: np.random.Generator) -> Frames:
    """Blur and noise, of a strength drawn anew for every chunk: uint8 `[n, F, H, W, 3]`, same out.

    Dreams are softer than what their VAE makes of real pictures; a judge of motion should not mind.
    """
    n = len(frames)
    distance = np.arange(-6, 7)
    sigma = rng.uniform(0.5, 3.0, (n, 1))
    kernel = np.exp(-(distance**2) / (2 * sigma**2))
    taps = torch.from_numpy((kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32))
    planes = torch.from_numpy(frames).permute(1, 4, 0, 2, 3).float().flatten(0, 1)  # [F*3, n, H, W]
    for shape, pad in (((n, 1, 1, -1), (6, 6, 0, 0)), ((n, 1, -1, 1), (0, 0, 6, 6))):
        planes = F.conv2d(F.pad(planes, pad, mode="replicate"), taps.view(shape), groups=n)
    soft = planes.unflatten(0, (frames.shape[1], 3)).permute(2, 0, 3, 4, 1).numpy()
    noise = rng.standard_normal(frames.shape, np.float32) * rng.uniform(0, 3, (n, 1, 1, 1, 1))
    blurred: Frames = np.clip(np.rint(soft + noise), 0, 255).astype(np.uint8)
    return blurred


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


def pairs_of(frames: Frames, actions: Integers) -> Pairs:
    """Pair every chunk but the first with the one before it.

    Takes n >= 2 consecutive chunks uint8 `[n, F, H, W, 3]` and the action behind each; `actions`
    may begin with those of earlier chunks, so that it is known for how long one was held.
    """
    tones = grey(frames)
    pictures = np.concatenate([tones[:-1, -2:], tones[1:]], axis=1)
    motion = [
        motion_features(torch.from_numpy(pictures[rows])).half()
        for rows in blocks(len(pictures), 256)
    ]
    count = len(frames) - 1
    return Pairs(
        motion=torch.cat(motion).numpy(),
        actions=actions[-count:],
        held=chunks_held(actions)[-count:],
    )


def join_pairs(parts: Iterable[Pairs]) -> Pairs:
    """Concatenate; raises `DatasetError` when there is nothing."""
    parts = list(parts)
    if not parts:
        raise DatasetError("there are no two consecutive chunks for the inverse model")
    return Pairs(
        motion=np.concatenate([part.motion for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        held=np.concatenate([part.held for part in parts]),
    )


def episode_pairs(episode: Episode) -> list[Pairs]:
    """Pairs of the whole chunks of one episode; none if there are less than two."""
    end = whole_chunks(episode)
    return [pairs_of(episode.frames[:end], played(episode)[:end])] if end > 1 else []
