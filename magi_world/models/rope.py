"""Learned 3-D rotary embedding (golden README section 3.4, spec section 2.4).

The time axis counts latent frames from the start of the video and never ends: its angle is
computed in float64 and reduced modulo a full turn, so frame 10,000,000 is as exact as frame 10.
Rows and columns are centred and rescaled to the area of a 16x16 grid of tokens.

Shape suffixes: G chunks, n tokens per chunk, R = 3 * (d // 8) angles per token.
"""

import math

import torch
from torch import Tensor, nn

from magi_world.errors import ConfigError

_REFERENCE_AREA = 256.0  # tokens in the grid that rows and columns are rescaled to


def rescale_factor(rows: int, columns: int) -> float:
    """Ratio of the grid's side to the reference grid's side."""
    return math.sqrt(rows * columns / _REFERENCE_AREA)


def axis_positions(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Centred, rescaled positions of token rows and columns, float64.

    Raises:
        ConfigError: an axis of one token, whose scale is undefined.
    """
    if rows < 2 or columns < 2:
        raise ConfigError(f"a grid of {rows}x{columns} tokens: both axes need at least 2")
    factor = rescale_factor(rows, columns)

    def axis(size: int) -> Tensor:
        centred = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        return centred * ((size / factor - 1) / (size - 1))

    return axis(rows), axis(columns)


def rotary_angles(
    bands: Tensor, first_frame: Tensor, chunk_width: int, rows: int, columns: int
) -> Tensor:
    """Angles of every token of every chunk, token order (frame, row, column).

    Args:
        bands: `[d // 8]` angular frequencies, shared by the three axes.
        first_frame: `[G]` integer latent frame that each chunk starts with.
        chunk_width: latent frames in a chunk.
        rows: token rows.
        columns: token columns.

    Returns:
        `[G * n, 3 * (d // 8)]` float32, axes in the order time, row, column.
    """
    bands64 = bands.double()
    y, x = (axis.to(bands.device) for axis in axis_positions(rows, columns))
    offsets = torch.arange(chunk_width, device=bands.device, dtype=torch.float64)
    frames = (first_frame.double()[:, None] + offsets).flatten()  # [G * chunk_width]
    time = (frames[:, None] * bands64).remainder(2 * math.pi)
    grid = (frames.numel(), rows, columns, bands.numel())
    angles = torch.cat(
        [
            time[:, None, None].expand(grid),
            (y[:, None] * bands64)[None, :, None].expand(grid),
            (x[:, None] * bands64)[None, None].expand(grid),
        ],
        dim=-1,
    )
    return angles.flatten(0, 2).float()


class LearnableRope(nn.Module):
    """Holds the frequencies as a parameter, as the checkpoints do."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        count = head_dim // 8
        self.bands = nn.Parameter(10000.0 ** (-torch.arange(count, dtype=torch.float32) / count))

    def table(
        self, first_frame: Tensor, chunk_width: int, rows: int, columns: int
    ) -> tuple[Tensor, Tensor]:
        """Cosine and sine of :func:`rotary_angles`, each `[G * n, R]` float32."""
        angles = rotary_angles(self.bands, first_frame, chunk_width, rows, columns)
        return angles.cos(), angles.sin()
