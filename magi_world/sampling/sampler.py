"""How one chunk is made: denoising steps and clean pass over a cache, for any of its slots.

Stateless beside the world and the step count; :mod:`magi_world.sampling.rollout` keeps the slots.
The passes themselves are in :mod:`magi_world.sampling.guided`.

Shape suffixes: G slots in this forward, C channels, P latent frames, H rows, W columns.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from magi_world.errors import ConfigError
from magi_world.sampling import schedule
from magi_world.sampling.captions import Caption
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.guided import ChunkView, GuidedModel
from magi_world.sampling.kv_cache import KVCache
from magi_world.sampling.settings import GenerateSettings, sampler_config

if TYPE_CHECKING:
    from magi_world.world import World


class Places(NamedTuple):
    """Where the chunks of a forward stand: their cache rows and their place in time."""

    cache: KVCache
    slots: Sequence[int]
    times: Sequence[int]
    """chunks that each slot's history holds before this one, ever"""


class ChunkSampler:
    """Runs a world's DiT over single chunks, with the passes that its guidance asks for."""

    def __init__(self, world: "World", steps: int) -> None:
        """Settle how the world is sampled, with a window of one chunk.

        Raises:
            ConfigError: steps that the KV ranges do not divide, or chunks that see the whole
                video, which never ends here.
        """
        self.world = world
        self.config = config = sampler_config(
            world.config, GenerateSettings(num_steps=steps, window=1)
        )
        if config.max_kv_range is None:
            raise ConfigError(
                "the chunks of this world see the whole video, but a rollout never ends: "
                "noise2clean_kvrange must list KV ranges"
            )
        self._places = config.max_kv_range
        self.grid = schedule.time_grid(
            steps,
            shift=config.shift,
            transform=config.transform,
            shortcut_mode=config.shortcut_mode,
        )
        self._intervals = schedule.step_intervals(steps, config.shortcut_mode)
        self._widths = [schedule.kv_width(k, steps, config.kv_ranges) for k in range(steps)]
        self._null: Caption | None = None
        self.model = GuidedModel(world.dit, config.guidance, size=world.config.latent_shape[1:])

    def new_cache(self, slots: int) -> KVCache:
        """An empty cache for so many slots."""
        dit, config = self.world.dit, self.world.config
        return KVCache(
            slots=slots,
            places=self._places,
            tokens=config.tokens_per_chunk,
            layers=dit.config.num_layers,
            groups=dit.config.num_query_groups,
            head_dim=dit.config.kv_channels,
            dtype=dit.block_dtype,
            device=self.world.device,
            latent_shape=config.latent_shape if dit.config.previous_chunk else (0,),
            # long attention is worth no masked keys where there is no slot beside this one
            whole_rings=slots > 1 or config.magi1 is None,
        )

    def denoise(self, noise: Tensor, prompts: Sequence[str | None], places: Places) -> Tensor:
        """Integrate the velocity from noise to clean latents, `[G, C, P, H, W]`.

        Only the scratch places of the slots are written.
        """
        captions = self._captions(prompts)
        views = {width: self._views(captions, places, width) for width in set(self._widths)}
        x = noise
        for k, (t, t_next) in enumerate(zip(self.grid, self.grid[1:], strict=False)):
            chunks = views[self._widths[k]]
            dt = self.config.step_feature(self._intervals[k])
            velocity = self.model.velocity(x, chunks, [t] * len(chunks), places.cache, dt)
            x = x + velocity * (t_next - t)
        self.model.forget()
        return x

    def clean_pass(self, latents: Tensor, prompts: Sequence[str | None], places: Places) -> Chunk:
        """Write finished chunks into the scratch places and judge them; the caller advances."""
        config = self.config
        read = [None] * len(prompts) if config.clean_null_caption else prompts
        width = schedule.clean_kv_width(config.kv_ranges, config.clean_kv_range)
        views = self._views(self._captions(read), places, width, clean=True)
        dt = config.step_feature(self._intervals[0])
        output = self.model.clean_pass(latents, views, config.clean_t, places.cache, dt)
        self.model.forget()
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

    def _captions(self, prompts: Sequence[str | None]) -> list[Caption]:
        """The caption of every chunk; chunks with the same prompt share one."""
        made = {prompt: Caption(self.world.caption(prompt)) for prompt in dict.fromkeys(prompts)}
        return [made[prompt] for prompt in prompts]

    def _views(
        self,
        captions: Sequence[Caption],
        places: Places,
        width: int | None,
        *,
        clean: bool = False,
    ) -> tuple[ChunkView, ...]:
        null = self._null_caption()
        return tuple(
            ChunkView(
                slot=slot,
                time=time,
                width=width,
                caption=caption,
                null=null,
                dropped=caption.kv is null.kv and self.config.clean_dropped,
                clean=clean,
                cleanest=not clean,
            )
            for caption, slot, time in zip(captions, places.slots, places.times, strict=True)
        )

    def _null_caption(self) -> Caption:
        """The null caption, one object as long as the world keeps it."""
        kv = self.world.caption(None)
        if self._null is None or self._null.kv is not kv:
            self._null = Caption(kv)
        return self._null
