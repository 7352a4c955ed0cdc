"""How one chunk is made: denoising steps and clean pass over a cache, for any of its slots.

Stateless beside the world and the step count; :mod:`magi_world.sampling.rollout` keeps the slots.

Shape suffixes: G slots in this forward, C channels, P latent frames, H rows, W columns.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from magi_world.kernels.attention import AttnSlices
from magi_world.models.dit import CaptionKV, ChunkInputs, DiTOutput
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.kv_cache import KVCache
from magi_world.sampling.schedule import time_grid

if TYPE_CHECKING:
    from magi_world.world import World


class Captions(NamedTuple):
    """The captions of one forward."""

    kv: CaptionKV
    """keys and values of every distinct prompt, packed"""
    cross: AttnSlices
    """which chunk reads which rows"""
    dropped: Tensor
    """booleans `[G]`: the chunk has no prompt"""


class Places(NamedTuple):
    """Where the chunks of a forward stand: their cache rows and their place in time."""

    cache: KVCache
    slots: Sequence[int]
    times: Sequence[int]
    """chunks that each slot's history holds before this one, ever"""


class ChunkSampler:
    """Runs a world's DiT over chunks."""

    def __init__(self, world: "World", steps: int) -> None:
        sampling = world.config.sampling
        self.world = world
        self.grid = time_grid(steps, shift=sampling.shift, transform=sampling.transform)

    def new_cache(self, slots: int) -> KVCache:
        """An empty cache for so many slots."""
        dit, config = self.world.dit, self.world.config
        return KVCache(
            slots=slots,
            places=config.sampling.kv_range,
            tokens=config.tokens_per_chunk,
            layers=dit.config.num_layers,
            groups=dit.config.num_query_groups,
            head_dim=dit.config.kv_channels,
            dtype=dit.block_dtype,
            device=self.world.device,
            latent_shape=config.latent_shape if dit.config.previous_chunk else (0,),
        )

    def denoise(self, noise: Tensor, prompts: Sequence[str | None], places: Places) -> Tensor:
        """Integrate the velocity from noise to clean latents, `[G, C, P, H, W]`.

        Only the scratch places of the slots are written.
        """
        scale = self.world.config.sampling.guidance_scale
        captions = self._captions(prompts)
        null = None if scale == 1.0 else self._captions([None] * len(prompts))
        rotary, attend = self._rotary(places), places.cache.open(places.slots)
        previous = self._previous(places)
        x = noise
        for t, t_next in zip(self.grid, self.grid[1:], strict=False):
            velocity = self._forward(
                x, t, captions, rotary, attend, places.cache, previous
            ).velocity
            if null is not None:
                free = self._forward(x, t, null, rotary, attend, places.cache, previous).velocity
                velocity = free + scale * (velocity - free)
            x = x + velocity * (t_next - t)
        return x

    def clean_pass(self, latents: Tensor, prompts: Sequence[str | None], places: Places) -> Chunk:
        """Write finished chunks into the scratch places and judge them; the caller advances."""
        sampling = self.world.config.sampling
        captions = self._captions([None] * len(prompts) if sampling.clean_null_caption else prompts)
        rotary, attend = self._rotary(places), places.cache.open(places.slots)
        output = self._forward(
            latents, sampling.clean_t, captions, rotary, attend, places.cache,
            self._previous(places),
        )  # fmt: skip
        places.cache.finish(places.slots, latents)
        return self.world.judge(latents, output.hidden, prompts)

    def replay(self, latents: Tensor, prompts: Sequence[str | None], cache: KVCache) -> Chunk:
        """Clean passes of a whole history `[m, C, P, H, W]` in the slot of an empty cache.

        Returns the last chunk, with reward 0: what lies before the first step earns nothing.
        """
        for index, prompt in enumerate(prompts):
            x = latents[index : index + 1].to(self.world.device, torch.float32)
            chunk = self.clean_pass(x, [prompt], Places(cache, [0], [index]))
            cache.advance([0])
        return replace(chunk, reward=torch.zeros_like(chunk.reward))

    def _forward(
        self,
        x_GCPHW: Tensor,
        t: float,
        captions: Captions,
        rotary: tuple[Tensor, Tensor],
        attend: AttnSlices,
        cache: KVCache,
        previous_GCPHW: Tensor | None,
    ) -> DiTOutput:
        inputs = ChunkInputs(
            x=x_GCPHW,
            t=torch.full((x_GCPHW.shape[0],), t, device=self.world.device),
            dropped=captions.dropped,
            rotary=rotary,
            caption=captions.kv,
            attend=attend,
            cross=captions.cross,
            previous=previous_GCPHW,
        )
        output: DiTOutput = self.world.dit(inputs, cache)
        return output

    def _previous(self, places: Places) -> Tensor | None:
        """The newest chunk of every slot, for models that read it."""
        if not self.world.dit.config.previous_chunk:
            return None
        return places.cache.newest[list(places.slots)]

    def _rotary(self, places: Places) -> tuple[Tensor, Tensor]:
        _, width, rows, columns = self.world.config.latent_shape
        first = torch.tensor([time * width for time in places.times], device=self.world.device)
        return self.world.dit.rotary(first, (width, rows, columns))

    def _captions(self, prompts: Sequence[str | None]) -> Captions:
        """Every distinct prompt once, its chunks pointing at it."""
        encoded = {prompt: self.world.caption(prompt) for prompt in dict.fromkeys(prompts)}
        rows: dict[str | None, tuple[int, int]] = {}
        end = 0
        for prompt, kv in encoded.items():
            rows[prompt] = (end, end + kv[0][0].shape[0])
            end = rows[prompt][1]
        packed = [
            (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
            for layer in zip(*encoded.values(), strict=True)
        ]
        n = self.world.config.tokens_per_chunk
        cross = AttnSlices.from_list(
            (i * n, (i + 1) * n, *rows[prompt], 0) for i, prompt in enumerate(prompts)
        )
        dropped = torch.tensor([prompt is None for prompt in prompts], device=self.world.device)
        return Captions(packed, cross, dropped)
