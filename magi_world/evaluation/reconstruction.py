"""How well the VAE codes single chunks, beside a linear code with as many numbers."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from magi_world.evaluation.clips import Episode, whole_chunks
from magi_world.evaluation.dreaming import through_vae
from magi_world.evaluation.metrics import (
    Frames,
    Mask,
    SquaredError,
    blocks,
    mean_chunk_psnr,
    moving_pixels,
)
from magi_world.evaluation.patch_pca import PatchPCA, PatchShape
from magi_world.world import World

MOVING_THRESHOLD = 16
"""bytes by which a pixel must change within a chunk to count as moving"""


def patch_shape(world: World) -> PatchShape:
    """The pixels behind one place of the world's latent, and its channels."""
    channels, latent_frames, _, latent_width = world.config.latent_shape
    return PatchShape(
        frames=world.config.chunk_frames // latent_frames,
        size=world.config.width // latent_width,
        components=channels,
    )


def draw_chunks(episodes: Sequence[Episode], count: int, seed: int) -> Frames:
    """Draw up to `count` whole chunks of the episodes, none twice: uint8 `[n, F, H, W, 3]`."""
    lengths = np.array([whole_chunks(episode) for episode in episodes])
    bounds = np.cumsum(lengths)
    total = int(bounds[-1])
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(total, size=min(count, total), replace=False))
    owners = np.searchsorted(bounds, chosen, side="right")
    places = chosen - (bounds - lengths)[owners]
    return np.stack([episodes[e].frames[k] for e, k in zip(owners, places, strict=True)])


class _Errors:
    """Errors of one coder: pooled over all pixels of a kind, and of every chunk alone."""

    def __init__(self) -> None:
        self.pooled = SquaredError()
        self.chunks: list[float] = []

    def add(self, real: Frames, coded: Frames, mask: Mask | None = None) -> None:
        for index in range(len(real)):
            one = SquaredError()
            kept = None if mask is None else mask[index : index + 1]
            one.add(real[index : index + 1], coded[index : index + 1], kept)
            self.pooled.total += one.total
            self.pooled.count += one.count
            self.chunks.append(one.total / one.count if one.count else math.nan)


def measure_reconstruction(
    world: World, held_out: Sequence[Episode], pca: PatchPCA, *, count: int, seed: int
) -> dict[str, Any]:
    """PSNR (dB, peak 255) of the VAE and of a PCA fitted on training chunks.

    `psnr` pools all pixels of all chunks and is the number to quote; `mean_psnr` is the mean of the
    chunks' own PSNRs. `moving_…` count only the pixels that change by more than `moving_threshold`
    bytes within their chunk; `moving_share` is their share, and `moving_mean_psnr` the mean over
    the `moving_chunks` that have any.
    """
    chunks = draw_chunks(held_out, count, seed)
    errors = {name: _Errors() for name in ("vae", "vae_moving", "pca", "pca_moving")}
    for rows in blocks(len(chunks), 64):
        real = chunks[rows]
        moving = moving_pixels(real, MOVING_THRESHOLD)
        coded = {
            "vae": through_vae(world, real),
            "pca": pca.reconstruct(real),
        }
        for name, pictures in coded.items():
            errors[name].add(real, pictures)
            errors[f"{name}_moving"].add(real, pictures, moving)
    result: dict[str, Any] = {
        "n": len(chunks),
        "unit": "chunks",
        "components": pca.shape.components,
        "moving_threshold": MOVING_THRESHOLD,
        "moving_share": errors["vae_moving"].pooled.count / errors["vae"].pooled.count,
        "moving_chunks": mean_chunk_psnr(errors["vae_moving"].chunks)["n"],
    }
    for name in ("vae", "pca"):
        everywhere, where_moving = errors[name], errors[f"{name}_moving"]
        result[name] = {
            "psnr": everywhere.pooled.psnr,
            "mean_psnr": mean_chunk_psnr(everywhere.chunks)["psnr"],
            "moving_psnr": where_moving.pooled.psnr,
            "moving_mean_psnr": mean_chunk_psnr(where_moving.chunks)["psnr"],
        }
    return result
