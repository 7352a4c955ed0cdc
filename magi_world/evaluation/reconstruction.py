"""How well the VAE codes single chunks, beside a linear code with as many numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from magi_world.evaluation.clips import Episode, whole_chunks
from magi_world.evaluation.dreaming import through_vae
from magi_world.evaluation.metrics import Frames, SquaredError, blocks, moving_pixels
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


def measure_reconstruction(
    world: World, held_out: Sequence[Episode], pca: PatchPCA, *, count: int, seed: int
) -> dict[str, Any]:
    """PSNR (dB, peak 255, all pixels pooled) of the VAE and of a PCA fitted on training chunks.

    `moving_psnr` counts only the pixels that change by more than `moving_threshold` within their
    chunk; `moving_share` is their share.
    """
    chunks = draw_chunks(held_out, count, seed)
    errors = {name: SquaredError() for name in ("vae", "vae_moving", "pca", "pca_moving")}
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
    return {
        "n": len(chunks),
        "unit": "chunks",
        "components": pca.shape.components,
        "moving_threshold": MOVING_THRESHOLD,
        "moving_share": errors["vae_moving"].count / errors["vae"].count,
        "vae": {"psnr": errors["vae"].psnr, "moving_psnr": errors["vae_moving"].psnr},
        "pca": {"psnr": errors["pca"].psnr, "moving_psnr": errors["pca_moving"].psnr},
    }
