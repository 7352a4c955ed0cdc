"""Clips in MAGI-1's own layout in front of the packed model (golden README section 3).

The published code calls its model with whole clips, token intervals and rows of a cache that
starts at chunk 0; this module translates such a call into packed chunks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from magi_world.errors import ConfigError
from magi_world.kernels.attention import AttnSlices
from magi_world.models.dit import ChunkInputs, VideoDiT
from magi_world.models.layers import KVMemory


class LinearMemory(KVMemory):
    """Keys and values of consecutive chunks from chunk 0, as golden README section 3.7 counts them.

    The rows of a call are written behind the first ``past`` rows. With ``update`` False they land
    in spare rows behind everything kept, so that the kept rows stay as they were.
    """

    def __init__(self, layers: int, rows: int, groups: int, head_dim: int) -> None:
        self.rows_L2RKD = torch.zeros(layers, 2, rows, groups, head_dim)
        self.past = 0
        self.update = True

    def extend(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        own = torch.stack([k_TKD, v_TKD])
        kept = self.rows_L2RKD[layer]
        end = self.past + k_TKD.shape[0]
        if end > kept.shape[1]:
            raise ConfigError(f"the memory holds {kept.shape[1]} rows, {end} are needed")
        rows = torch.cat([kept[:, : self.past], own], dim=1)
        if self.update:
            kept[:, self.past : end] = own
        return rows[0], rows[1]


def forward_clip(
    dit: VideoDiT,
    x: Tensor,
    t: Tensor,
    y: Tensor,
    mask: Tensor,
    kv_range: Sequence[Sequence[int]],
    *,
    chunk_width: int,
    caption_dropout: bool | Sequence[bool],
    slice_point: int = 0,
    memory: LinearMemory | None = None,
    update_kv_cache: bool = False,
    dt: Tensor | None = None,
) -> Tensor:
    """Run the model on clips.

    Args:
        dit: the model.
        x: latents `[N, C, T, H, W]`, T a multiple of the chunk width.
        t: timesteps `[N, chunks]`.
        y: captions `[N * chunks, 1, L, caption_channels]`.
        mask: leading ones `[N * chunks, 1, L]`.
        kv_range: key interval in tokens of every chunk, over [cached rows, own rows]; with
            several clips the interval of chunk 0 holds for each of them.
        chunk_width: latent frames in a chunk.
        caption_dropout: one flag, or one a clip.
        slice_point: chunks that precede the clip.
        memory: the cache; None when the pass has none.
        update_kv_cache: keep the rows of this call in the cache.
        dt: step-size feature `[N, chunks]` of distilled models.

    Returns:
        Velocity `[N, C, T, H, W]` float32.
    """
    N, C, T, H, W = x.shape
    if T % chunk_width:
        raise ConfigError(f"{T} latent frames are not a multiple of chunk_width {chunk_width}")
    chunks = T // chunk_width
    x_GCPHW = x.unflatten(2, (chunks, chunk_width)).transpose(1, 2).flatten(0, 1)
    first = (slice_point + torch.arange(chunks)) * chunk_width
    n = chunk_width * (H // dit.config.patch_size) * (W // dit.config.patch_size)

    if N == 1:
        keys = [(int(start), int(end)) for start, end in kv_range]
    else:  # several clips are independent: each reads the first interval, shifted to its own rows
        start, end = (int(edge) for edge in kv_range[0])
        keys = [(start + g * n, end + g * n) for g in range(N * chunks)]
    attend = [(g * n, (g + 1) * n, *interval, 0) for g, interval in enumerate(keys)]
    lengths = mask.flatten(1).eq(1).sum(1).tolist()
    ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
    cross = [(g * n, (g + 1) * n, ends[g], ends[g + 1], 0) for g in range(N * chunks)]
    tokens = y.flatten(0, 1)[mask.flatten(0, 1).eq(1)]

    flags = [caption_dropout] if isinstance(caption_dropout, bool) else list(caption_dropout)
    dropped = torch.tensor(flags).expand(N) if len(flags) == 1 else torch.tensor(flags)
    inputs = ChunkInputs(
        x=x_GCPHW,
        t=t.flatten(),
        dropped=dropped.repeat_interleave(chunks),
        rotary=dit.rotary(first.repeat(N), (chunk_width, H, W)),
        caption=dit.caption_kv(tokens),
        attend=AttnSlices.from_list(attend),
        cross=AttnSlices.from_list(cross),
        dt=None if dt is None else dt.flatten(),
    )
    if memory is not None:
        memory.past, memory.update = slice_point * n, update_kv_cache
    velocity_GCPHW = dit(inputs, memory).velocity
    velocity: Tensor = velocity_GCPHW.unflatten(0, (N, chunks)).transpose(1, 2).flatten(2, 3)
    return velocity
