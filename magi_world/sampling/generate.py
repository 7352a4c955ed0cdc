"""Open-loop generation: a video from prompts, chunk by chunk, after nothing, an image or a video.

>>> video = generate(world, "a cat on a skateboard", num_frames=96)     # doctest: +SKIP
>>> for chunk in video:                                                 # doctest: +SKIP
...     show(chunk.frames)
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

from magi_world.errors import ConfigError
from magi_world.sampling.captions import CaptionBook
from magi_world.sampling.layout import VideoLayout, video_layout
from magi_world.sampling.model_passes import ModelPasses
from magi_world.sampling.settings import (
    GenerateSettings,
    SamplerConfig,
    Savings,
    sampler_config,
)
from magi_world.sampling.source import ChunkPrompt, Prompts, PromptSource
from magi_world.sampling.window import WindowSampler

if TYPE_CHECKING:
    from magi_world.world import World

__all__ = [
    "ChunkPrompt",
    "GenerateSettings",
    "GeneratedChunk",
    "Generation",
    "Savings",
    "generate",
    "world_layout",
]


@dataclass(frozen=True, eq=False)
class GeneratedChunk:
    """A finished chunk: what of it belongs to the video."""

    index: int
    """number among the generated chunks, from 0"""
    latents: Tensor
    """scaled latents float32 `[C, P', H, W]`, P' at most the chunk width"""
    prompt: str
    num_frames: int
    """frames that belong to the video; in compat mode those before the decoder's losses"""
    decode: Callable[[Tensor], Tensor] = field(repr=False)
    """latents `[1, C, P', H, W]` to frames"""
    _decoded: list[Tensor] = field(default_factory=list, repr=False)

    @property
    def frames(self) -> Tensor:
        """Frames uint8 `[T, H, W, 3]`, decoded when first asked for."""
        if not self._decoded:
            self._decoded.append(self.decode(self.latents[None])[0][: self.num_frames])
        return self._decoded[0]


class Generation(Iterator[GeneratedChunk]):
    """A video being generated; iterating makes its chunks one by one.

    Attributes:
        layout: chunks and frames of the video.
        config: how it is sampled.
        passes: what the model did so far.
    """

    def __init__(
        self,
        world: "World",
        layout: VideoLayout,
        config: SamplerConfig,
        source: "PromptSource",
        sampler: WindowSampler,
        prefix: Tensor | None,
    ) -> None:
        self.layout, self.config = layout, config
        self.passes = source.passes
        self.sampler = sampler
        self._world, self._source = world, source
        self._chunks = sampler.run(source, prefix)

    @property
    def num_chunks(self) -> int | None:
        """Generated chunks; None for a video without a known end."""
        total = self.layout.num_chunks
        return None if total is None else total - self.layout.offset

    def __next__(self) -> GeneratedChunk:
        emission, latents = next(self._chunks)
        chunk = emission.chunk
        first, stop = self.layout.latents(chunk)
        begin, end = self.layout.frames(chunk)
        compat = self.config.compat
        world = self._world

        def decode(z: Tensor) -> Tensor:
            return world.decode(z) if compat is None else world.decode(z, compat=compat)

        return GeneratedChunk(
            emission.index,
            latents[:, : stop - first],
            self._source.prompt(chunk),
            end - begin,
            decode,
        )


def world_layout(
    world: "World",
    num_frames: int | None,
    *,
    prefix_latent_frames: int = 0,
    from_image: bool | None = None,
    settings: GenerateSettings | None = None,
) -> VideoLayout:
    """The chunks that :func:`generate` would make; see :func:`video_layout`.

    Raises:
        ConfigError: as :func:`generate`.
    """
    config = sampler_config(world.config, settings)
    return video_layout(
        num_frames,
        chunk_width=config.chunk_width,
        frames_per_latent=world.config.vae.patch_length,
        prefix_latent_frames=prefix_latent_frames,
        from_image=from_image,
        compat=config.compat,
    )


def generate(
    world: "World",
    prompts: Prompts,
    *,
    num_frames: int | None,
    prefix: Tensor | None = None,
    from_image: bool | None = None,
    settings: GenerateSettings | None = None,
    noise: Tensor | None = None,
) -> Generation:
    """Generate a video.

    Everything that can be checked is checked, and known prompts are encoded, before the first step;
    nothing is generated before the first chunk is asked for.

    Args:
        world: any world; those of MAGI-1 checkpoints know more settings.
        prompts: one text for all chunks, or one per generated chunk: a list, or an iterator that is
            read as the window moves on.
        num_frames: new frames; with an image its four frames are among them, a video prefix is not.
            None: as long as prompts last.
        prefix: latents `[C, T, h, w]` of an image or a video, scaled as
            :meth:`magi_world.world.World.encode` does.
        from_image: the prefix is an image, whose frames lead the video; None: it is if T is 1.
        settings: choices; None takes the world's.
        noise: initial noise `[C, T, h, w]` of the whole video, prefix included, instead of seeded
            noise.

    Returns:
        An iterator over the chunks, with counters.

    Raises:
        ConfigError: settings, sizes or frames that cannot work.
        PromptError: a prompt that cannot be used, or not one a chunk. Prompts of an iterator are
            checked when they are read.
    """
    config = sampler_config(world.config, settings)
    size = world.config.latent_shape
    given = 0
    if prefix is not None:
        given = prefix.shape[1] if prefix.ndim == 4 else 0
        if tuple(prefix.shape) != (size[0], given, *size[2:]) or given == 0:
            raise ConfigError(
                f"prefix {tuple(prefix.shape)}: expected {(size[0], 'T', *size[2:])}, T 1 or more"
            )
    known = isinstance(prompts, Sequence) and not isinstance(prompts, str)
    layout = video_layout(
        num_frames,
        chunk_width=config.chunk_width,
        frames_per_latent=world.config.vae.patch_length,
        prefix_latent_frames=given,
        from_image=from_image,
        num_generated=len(prompts) if known else None,  # type: ignore[arg-type]
        compat=config.compat,
    )
    passes = ModelPasses()
    book = CaptionBook(world, keep=config.window + 1, compat=config.compat, passes=passes)
    source = PromptSource(prompts, layout, config, book, passes, size, noise, world.device)
    sampler = WindowSampler(
        world.dit,
        config,
        size=size,
        null=book.null(),
        num_chunks=layout.num_chunks,
        prefix_latent_frames=given,
        emit_prefix=layout.from_image,
        passes=passes,
    )
    source.read_ahead()
    return Generation(world, layout, config, source, sampler, prefix)
