"""Stage 1: the VAE learns to compress chunks of frames.

The loss is the squared error in pixels, with more weight where a pixel moves within the chunk
(fireballs are a few pixels wide), is seldom so (a paddle that stands still) or has a rare colour,
and a small KL term that keeps the latents near unit scale.

Rare is a colour as in Zhang et al. 2016, "Colorful Image Colorization", section 2.2: by one over
its share of the data, smoothed and mixed with equal shares of all colours that occur.

Shape suffixes: N chunks, C channels, T frames, H and W pixels; L levels of a colour channel.
"""

import numpy as np
import torch
from torch import Tensor

from magi_world.models.pixels import to_frames, to_pixels
from magi_world.models.vae import VitVAE
from magi_world.training.store import Store

_MOTION_SCALE = 0.1  # change of a pixel, in [-1, 1] units, that counts as full motion
_SAMPLED = 500  # chunks that median and colours are taken of
_LEVELS = 16  # of a channel, so that shares of colours can be counted
_COLOUR_BLUR = (0.1, 0.8, 0.1)  # neighbouring levels look alike
_OCCURS = 1e-6  # share from which on a colour counts as one of the data's


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
        rare_weight: float = 0.0,
        decoder_only: bool = False,
    ) -> None:
        self.module = vae
        vae.encoder.requires_grad_(not decoder_only)
        self.store = store
        self.batch_size = batch_size
        self.kl_weight = kl_weight
        self.motion_weight = motion_weight
        self.unusual_weight = unusual_weight
        self.rare_weight = rare_weight
        self.indices = torch.from_numpy(np.flatnonzero(~store.held_out))
        held_out = np.flatnonzero(store.held_out)
        self.shown = held_out[:: max(1, len(held_out) // 8)][:8]
        known = self.indices.numpy()
        sampled = known[:: max(1, len(known) // _SAMPLED)]
        if unusual_weight:
            median = np.median(store.frames[sampled, 0], axis=0).astype(np.uint8)
            self.usual = to_pixels(torch.from_numpy(median)[None, None])  # [1, 3, 1, H, W]
        if rare_weight:
            self.rarity = colour_rarity(torch.from_numpy(store.frames[sampled]))

    def loss(self, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted reconstruction error plus KL on one random batch."""
        picks = torch.randint(len(self.indices), (self.batch_size,), generator=generator)
        rows = self.indices[picks].numpy()
        frames = torch.from_numpy(self.store.frames[np.sort(rows)])
        x = to_pixels(frames)
        mean, logvar, std = self.module.posterior(self.module.encode_moments(x))
        z = mean + std * torch.randn(mean.shape, generator=generator)
        error = (self.module.decode(z, single_frame=False) - x).square()
        motion = (x - x.mean(2, keepdim=True)).abs().amax((1, 2), keepdim=True)
        weight = 1 + self.motion_weight * (motion / _MOTION_SCALE).clamp(max=1)
        if self.unusual_weight:
            unusual = (x - self.usual).abs().amax(1, keepdim=True)
            weight = weight + self.unusual_weight * (unusual / _MOTION_SCALE).clamp(max=1)
        if self.rare_weight:
            weight = weight + self.rare_weight * self.rarity[_colours(frames)][:, None]
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


def colour_rarity(frames_NTHWC: Tensor) -> Tensor:
    """How rare each colour is in frames uint8 `[N, T, H, W, 3]`: 0 to 1, `[L ** 3]`."""
    counts = torch.bincount(_colours(frames_NTHWC).flatten(), minlength=_LEVELS**3).double()
    shares_LLL = (counts / counts.sum()).view(_LEVELS, _LEVELS, _LEVELS)
    kernel = torch.tensor(_COLOUR_BLUR, dtype=torch.float64)
    for axis in range(3):
        lines = shares_LLL.movedim(axis, -1)
        blurred = torch.nn.functional.conv1d(
            lines.reshape(-1, 1, _LEVELS), kernel[None, None], padding=1
        )
        shares_LLL = blurred.view(lines.shape).movedim(-1, axis)
    equal = 1 / (shares_LLL > _OCCURS).sum()
    return (equal / (shares_LLL + equal)).flatten().float()


def _colours(frames_NTHWC: Tensor) -> Tensor:
    """The colour of each pixel as one of `L ** 3`, `[N, T, H, W]`."""
    levels = frames_NTHWC.long() * _LEVELS // 256
    return (levels[..., 0] * _LEVELS + levels[..., 1]) * _LEVELS + levels[..., 2]
