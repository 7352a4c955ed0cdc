"""Between frames (uint8) and what the VAE computes with (float32 near [-1, 1]).

Shape suffixes: N batch, T frames, H rows, W columns, C = 3 colours.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi_world.errors import ConfigError


def checked_frames(frames: Tensor | NDArray[np.uint8], height: int, width: int) -> Tensor:
    """Frames as a tensor uint8 `[N, T, height, width, 3]`.

    Raises:
        ConfigError: another dtype or shape.
    """
    if isinstance(frames, np.ndarray):
        frames = frames.copy()  # torch takes neither read-only arrays nor backward strides
    frames_NTHWC = torch.as_tensor(frames)
    expected = (height, width, 3)
    if frames_NTHWC.ndim != 5 or tuple(frames_NTHWC.shape[2:]) != expected:
        raise ConfigError(f"frames {tuple(frames_NTHWC.shape)}: expected [n, T, *{expected}]")
    if frames_NTHWC.dtype != torch.uint8:
        raise ConfigError(f"frames are {frames_NTHWC.dtype}, expected uint8")
    return frames_NTHWC


def to_pixels(frames_NTHWC: Tensor) -> Tensor:
    """Frames uint8 `[N, T, H, W, 3]` to pixels float32 `[N, 3, T, H, W]` in [-1, 1]."""
    return frames_NTHWC.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_frames(pixels_NCTHW: Tensor) -> Tensor:
    """Pixels near [-1, 1] to frames uint8, truncated as MAGI-1 does; the inverse layout."""
    scaled = (pixels_NCTHW.float() * 127.5 + 127.5).clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
