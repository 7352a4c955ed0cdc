"""Between frames (uint8) and what the VAE computes with (float32 near [-1, 1]).

Shape suffixes: N batch, T frames, H rows, W columns, C = 3 colours.
"""

import torch
from torch import Tensor


def to_pixels(frames_NTHWC: Tensor) -> Tensor:
    """Frames uint8 `[N, T, H, W, 3]` to pixels float32 `[N, 3, T, H, W]` in [-1, 1]."""
    return frames_NTHWC.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_frames(pixels_NCTHW: Tensor) -> Tensor:
    """Pixels near [-1, 1] to frames uint8, truncated as MAGI-1 does; the inverse layout."""
    scaled = (pixels_NCTHW.float() * 127.5 + 127.5).clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
