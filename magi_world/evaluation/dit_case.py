"""What `bench dit` runs: a model with random weights, how it is sampled, and what it reads."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from magi_world.checkpoints.published_config import (
    PublishedConfig,
    is_published_config,
    read_json,
)
from magi_world.config import DiTConfig, WorldConfig
from magi_world.errors import ConfigError
from magi_world.magi1_config import Magi1Config
from magi_world.models.dit import VideoDiT
from magi_world.sampling.captions import Caption
from magi_world.sampling.settings import (
    GenerateSettings,
    SamplerConfig,
    Savings,
    magi1_sampler_config,
    sampler_config,
)

Mode = Literal["base", "distill"]
MODES = ("base", "distill")
_PATCH = 8  # pixels of a latent in published models, whose VAE is in another file

DEFAULT = PublishedConfig(
    dit=DiTConfig(
        num_layers=12, hidden_size=768, ffn_hidden_size=3072, num_attention_heads=6,
        num_query_groups=2, kv_channels=128, caption_channels=4096, caption_max_length=800,
    ),
    magi1=Magi1Config(num_steps=8),
    height=128,
    width=128,
)  # fmt: skip
"""a chunk of 6x16x16 latents, head width and query heads a group as in the 4.5B model"""


@dataclass(frozen=True, kw_only=True)
class DiTCase:
    """A model, its sampling and the size of a chunk."""

    name: str
    dit: DiTConfig
    source: Magi1Config | WorldConfig
    size: tuple[int, int, int, int]
    """channels, latent frames, rows and columns of a chunk"""
    null_tokens: int
    num_chunks: int

    @property
    def mode(self) -> str | None:
        """ "base" or "distill"; None for worlds other than MAGI-1's."""
        if isinstance(self.source, WorldConfig):
            return None
        return "distill" if self.source.distill else "base"

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens n of a chunk."""
        _, frames, rows, columns = self.size
        return frames * (rows // self.dit.patch_size) * (columns // self.dit.patch_size)

    def sampler(
        self, savings: Savings, *, compat: bool = False, num_steps: int | None = None
    ) -> SamplerConfig:
        """How a variant of the case is sampled.

        Raises:
            ConfigError: settings that cannot work.
        """
        if isinstance(self.source, WorldConfig):
            return sampler_config(
                self.source, GenerateSettings(savings=savings, num_steps=num_steps)
            )
        magi1 = self.source if num_steps is None else replace(self.source, num_steps=num_steps)
        magi1.check()
        settings = GenerateSettings(savings=savings, compat="magi-1" if compat else None)
        return magi1_sampler_config(magi1, settings)

    @property
    def least_steps(self) -> int:
        """Fewest denoising steps that have every shape of the whole run."""
        sampler = self.sampler(Savings())
        stages = max(1, len(sampler.kv_ranges))
        least = sampler.window
        while least % stages:
            least += sampler.window
        return min(least, sampler.num_steps)


def read_case(
    path: Path | None,
    *,
    mode: Mode | None = None,
    window: int | None = None,
    steps: int | None = None,
    chunks: int | None = None,
) -> DiTCase:
    """Read a case from a published configuration file or a world's JSON.

    Args:
        path: the file; None takes :data:`DEFAULT`.
        mode: guidance in three passes, or distilled; None takes the file's own.
        window: chunks denoised together.
        steps: denoising steps of a chunk.
        chunks: chunks of the video; None takes the file's `num_frames`, for worlds 4.

    Raises:
        CheckpointError: the file is absent or no JSON.
        ConfigError: it is neither of the two, or settings that cannot work.
    """
    document = None if path is None else read_json(path)
    if path is not None and not is_published_config(document):
        return _of_world(path, document, mode=mode, window=window, steps=steps, chunks=chunks)
    try:
        published = DEFAULT if path is None else PublishedConfig.from_dict(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return _of_magi1(
        "default" if path is None else str(path),
        published.dit,
        published.magi1,
        (published.height // _PATCH, published.width // _PATCH),
        published.sampling().null_prompt_tokens,
        mode=mode,
        window=window,
        steps=steps,
        chunks=chunks,
    )


def _of_magi1(
    name: str,
    dit: DiTConfig,
    magi1: Magi1Config,
    rows_columns: tuple[int, int],
    null_tokens: int,
    *,
    mode: Mode | None,
    window: int | None,
    steps: int | None,
    chunks: int | None,
) -> DiTCase:
    distill = magi1.distill if mode is None else mode == "distill"
    chosen = replace(
        magi1,
        # random weights are not quantised: what is timed are the products in the model's dtype
        fp8_quant=False,
        distill=distill,
        cfg_number=1 if distill else 3,
        window=magi1.window if window is None else window,
        num_steps=magi1.num_steps if steps is None else steps,
    )
    chosen.check()
    per_chunk = chosen.chunk_width * chosen.temporal_downsample_factor
    return DiTCase(
        name=name,
        dit=dit,
        source=chosen,
        size=(dit.latent_channels, chosen.chunk_width, *rows_columns),
        null_tokens=null_tokens,
        num_chunks=-(-chosen.num_frames // per_chunk) if chunks is None else chunks,
    )


def _of_world(
    path: Path,
    document: object,
    *,
    mode: Mode | None,
    window: int | None,
    steps: int | None,
    chunks: int | None,
) -> DiTCase:
    values = document.get("config", document) if isinstance(document, Mapping) else document
    try:
        config = WorldConfig.from_dict(values)  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(
            f"{path} is neither a published configuration nor a world's: {error}"
        ) from None
    if config.magi1 is not None:
        return _of_magi1(
            str(path), config.dit, config.magi1, config.latent_shape[2:],
            config.sampling.null_prompt_tokens,
            mode=mode, window=window, steps=steps, chunks=chunks,
        )  # fmt: skip
    if mode is not None or window not in (None, 1):
        raise ConfigError(f"{path} is no MAGI-1 model: it has neither --mode nor --window")
    if steps is not None:
        config = replace(config, sampling=replace(config.sampling, num_steps=steps))
    return DiTCase(
        name=str(path),
        dit=config.dit,
        source=config,
        size=config.latent_shape,
        null_tokens=config.sampling.null_prompt_tokens,
        num_chunks=4 if chunks is None else chunks,
    )


@torch.inference_mode()
def random_dit(config: DiTConfig, device: torch.device, dtype: torch.dtype, seed: int) -> VideoDiT:
    """A model whose matrices are drawn from N(0, 1 / inputs); nothing else of it matters here."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dit = VideoDiT(config).eval()
        torch.nn.init.normal_(dit.y_embedder.null_caption_embedding)
    return dit.to_recipe(dtype).to(device)


class RandomSource:
    """Noise and one caption for every chunk, a `ChunkSource` of the window sampler."""

    def __init__(self, case: DiTCase, caption: Caption, seed: int) -> None:
        self._case, self._caption = case, caption
        self._ranges = case.sampler(Savings()).kv_ranges
        self._generator = torch.Generator().manual_seed(seed)

    def exists(self, chunk: int) -> bool:
        """See there."""
        return chunk < self._case.num_chunks

    def noise(self, chunk: int) -> Tensor:
        """See there."""
        return torch.randn(self._case.size, generator=self._generator)

    def caption(self, chunk: int) -> Caption:
        """See there."""
        return self._caption

    def kv_ranges(self, chunk: int) -> tuple[int, ...]:
        """See there."""
        return self._ranges


def random_caption(dit: VideoDiT, tokens: int, seed: int) -> Caption:
    """A caption of random tokens; one of the null caption's own rows would do as well."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(tokens, dit.config.caption_channels, generator=generator)
    rows = rows.to(next(dit.parameters()).device)
    with torch.inference_mode():
        return Caption(dit.caption_kv(rows), lambda: dit.caption_kv(rows))
