"""What a video's chunks are made from: prompts, noise and KV ranges, read chunk by chunk."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from magi_world.errors import ConfigError, PromptError
from magi_world.sampling.captions import Caption, CaptionBook
from magi_world.sampling.layout import VideoLayout
from magi_world.sampling.model_passes import ModelPasses
from magi_world.sampling.settings import SamplerConfig


@dataclass(frozen=True)
class ChunkPrompt:
    """A prompt of one chunk, with KV ranges of its own.

    A narrow range at the noisy stages asks for a new shot, at the clean stages for new details of
    the same shot (the controllable transition of the MAGI-1 paper).
    """

    text: str
    kv_ranges: tuple[int, ...] | None = None
    """KV range of every noise stage, noisiest first; None: those of the video"""


Prompts = str | Iterable[str | ChunkPrompt]
"""one text for all chunks, or one a chunk"""


class PromptSource:
    """Prompts, noise and KV ranges of the chunks, read as the window moves on."""

    def __init__(
        self,
        prompts: Prompts,
        layout: VideoLayout,
        config: SamplerConfig,
        book: CaptionBook,
        passes: ModelPasses,
        size: tuple[int, int, int, int],
        noise: Tensor | None,
        device: torch.device,
    ) -> None:
        self._layout, self._config, self._book, self._size = layout, config, book, size
        self.passes = passes
        self._kept: dict[int, ChunkPrompt] = {}
        self._next = layout.offset
        self._all: list[ChunkPrompt] | None = None
        self._prompts: Iterator[str | ChunkPrompt] | None = None
        self._one: ChunkPrompt | None = None
        if isinstance(prompts, str):
            self._one = self._checked(prompts)
        elif isinstance(prompts, Sequence):
            self._all = [self._checked(prompt) for prompt in prompts]
            total = layout.num_chunks
            wanted = len(self._all) if total is None else total - layout.offset
            if len(self._all) != wanted or wanted == 0:
                raise PromptError(f"{len(self._all)} prompts for {wanted} chunks: one a chunk")
            self._prompts = iter(self._all)
        elif isinstance(prompts, Iterable):
            self._prompts = iter(prompts)
        else:
            raise PromptError(f"prompts {prompts!r}: a text or texts are needed")
        self._noise = self._given_noise(noise)
        # as published, all noise is drawn at once and on the device
        whole = config.compat is not None and self._noise is None
        self._generator = torch.Generator(device if whole else "cpu").manual_seed(config.seed)
        if whole:
            total = layout.num_chunks
            if total is None:
                raise ConfigError('compat="magi-1" draws the noise of the whole video at once: '
                                  "give num_frames")  # fmt: skip
            C, P, H, W = size
            self._noise = torch.randn(
                (C, P * total, H, W), generator=self._generator, dtype=torch.float32, device=device
            )

    def read_ahead(self) -> None:
        """Encode all prompts that are known."""
        layout = self._layout
        if self._one is not None:
            count = 1 if layout.num_chunks is None else layout.num_chunks - layout.offset
            texts = [self._one.text] * count
        elif self._all is not None:
            texts = [prompt.text for prompt in self._all]
        else:
            return
        chunks = range(layout.offset, layout.offset + len(texts))
        self._book.read_ahead(texts, [self._remaining(chunk) for chunk in chunks])

    def exists(self, chunk: int) -> bool:
        """See :class:`magi_world.sampling.window.ChunkSource`."""
        return self._read(chunk) is not None

    def noise(self, chunk: int) -> Tensor:
        """See :class:`magi_world.sampling.window.ChunkSource`."""
        if self._noise is not None:
            first = chunk * self._size[1]
            return self._noise[:, first : first + self._size[1]]
        return torch.randn(self._size, generator=self._generator, dtype=torch.float32, device="cpu")

    def caption(self, chunk: int) -> Caption:
        """See :class:`magi_world.sampling.window.ChunkSource`."""
        return self._book.of(self._prompt(chunk).text, self._remaining(chunk))

    def kv_ranges(self, chunk: int) -> tuple[int, ...]:
        """See :class:`magi_world.sampling.window.ChunkSource`."""
        own = self._prompt(chunk).kv_ranges
        return self._config.kv_ranges if own is None else own

    def prompt(self, chunk: int) -> str:
        """The text of a chunk that has left; those before it are forgotten."""
        text = self._prompt(chunk).text
        for old in [number for number in self._kept if number < chunk]:
            del self._kept[old]
        return text

    def _remaining(self, chunk: int) -> int | None:
        total = self._layout.num_chunks
        return None if total is None else total - chunk - 1

    def _prompt(self, chunk: int) -> ChunkPrompt:
        found = self._read(chunk)
        if found is None:
            done = chunk - self._layout.offset
            raise PromptError(f"the prompts ended after {done} of {self._count()} chunks")
        return found

    def _count(self) -> int:
        return (self._layout.num_chunks or 0) - self._layout.offset

    def _read(self, chunk: int) -> ChunkPrompt | None:
        """The prompt of a chunk; None behind the end."""
        if self._one is not None:
            return self._one
        assert self._prompts is not None
        while self._next <= chunk:
            try:
                prompt = next(self._prompts)
            except StopIteration:
                return None
            self._kept[self._next] = self._checked(prompt)
            self._next += 1
        return self._kept[chunk]

    def _checked(self, prompt: object) -> ChunkPrompt:
        chosen = prompt if isinstance(prompt, ChunkPrompt) else ChunkPrompt(prompt)  # type: ignore[arg-type]
        self._book.check(chosen.text)
        if chosen.kv_ranges is not None:
            self._config.check_chunk_ranges(chosen.kv_ranges)
        return chosen

    def _given_noise(self, noise: Tensor | None) -> Tensor | None:
        if noise is None:
            return None
        C, P, H, W = self._size
        total = self._layout.num_chunks
        if total is None:
            raise ConfigError("noise is for a video of known length: give num_frames")
        if tuple(noise.shape) != (C, P * total, H, W):
            raise ConfigError(f"noise {tuple(noise.shape)}: expected {(C, P * total, H, W)}")
        return noise.float()
