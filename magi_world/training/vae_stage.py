"""Stage 1: the VAE learns to compress chunks of frames.

The loss is the squared error in pixels, with more weight where a pixel moves within the chunk
(fireballs are a few pixels wide) or is seldom so (a paddle that stands still), and a small KL term
that keeps the latents near unit scale.
"""

import numpy as np
import torch
from torch import Tensor

from magi_world.models.pixels import to_frames, to_pixels
from magi_world.models.vae import VitVAE
from magi_world.training.store import Store

_MOTION_SCALE = 0.1  # change of a pixel, in [-1, 1] units, that counts as full motion
_MEDIAN_OF = 500  # frames


class VAEStage:
    """Reconstruction of random training chunks."""

    name = "vae"
    progress = 0.0

    def __init__(
        self,
        vae: VitVAE,
        store: Store,
        batch_size: int,
        kl_weight: float,
        motion_weight: float,
        unusual_weight: float = 0.0,
        decoder_only: bool = False,
    ) -> None:
        self.module = vae
        vae.encoder.requires_grad_(not decoder_only)
        self.store = store
        self.batch_size = batch_size
        self.kl_weight = kl_weight
        self.motion_weight = motion_weight
        self.unusual_weight = unusual_weight
        self.indices = torch.from_numpy(np.flatnonzero(~store.held_out))
        held_out = np.flatnonzero(store.held_out)
        self.shown = held_out[:: max(1, len(held_out) // 8)][:8]
        if unusual_weight:
            known = self.indices.numpy()
            frames = store.frames[known[:: max(1, len(known) // _MEDIAN_OF)], 0]
            median = torch.from_numpy(np.median(frames, axis=0).astype(np.uint8))
            self.usual = to_pixels(median[None, None])  # [1, 3, 1, H, W]

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted reconstruction error plus KL on one random batch."""
        picks = torch.randint(len(self.indices), (self.batch_size,), generator=generator)
        rows = self.indices[picks].numpy()
        x = to_pixels(torch.from_numpy(self.store.frames[np.sort(rows)]))
        mean, logvar, std = self.module.posterior(self.module.encode_moments(x))
        z = mean + std * torch.randn(mean.shape, generator=generator)
        error = (self.module.decode(z, single_frame=False) - x).square()
        motion = (x - x.mean(2, keepdim=True)).abs().amax((1, 2), keepdim=True)
        weight = 1 + self.motion_weight * (motion / _MOTION_SCALE).clamp(max=1)
        if self.unusual_weight:
            unusual = (x - self.usual).abs().amax(1, keepdim=True)
            weight = weight + self.unusual_weight * (unusual / _MOTION_SCALE).clamp(max=1)
        reconstruction = (error * weight / weight.mean()).mean()
        kl = 0.5 * (mean.square() + std.square() - 1 - logvar).mean()
        mse = error.detach().mean()
        return reconstruction + self.kl_weight * kl, {
            "psnr": 10 * torch.log10(4 / mse), "kl": kl.detach(), "std": std.detach().mean(),
        }  # fmt: skip

    @torch.no_grad()
    def sample(self) -> dict[str, Tensor]:
        """Held-out chunks, real above reconstructed."""
        frames = torch.from_numpy(self.store.frames[self.shown])
        again = to_frames(self.module.decode(self.module.encode(to_pixels(frames)), False))
        return {"real_above_decoded": torch.cat([frames.flatten(0, 1), again.flatten(0, 1)], dim=1)}
