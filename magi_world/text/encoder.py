"""The prompt encoder of MAGI-1 checkpoints: cleaner, tokenizer, T5, special tokens, cache.

The published code pads every caption to 800 tokens and masks the padding away. Masked positions
have no influence on the others, so a caption is encoded at its own length here: the same numbers
up to rounding for a fraction of the work.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from magi_world.errors import CheckpointError, ConfigError, PromptError
from magi_world.models.t5 import CONFIG, load_t5, read_config, weight_files
from magi_world.offload.modules import OnDemand
from magi_world.text import tokenizer as tokens
from magi_world.text.cache import EmbeddingCache, fingerprint
from magi_world.text.cleaning import clean, clean_published
from magi_world.text.special_tokens import NEGATIVE, SpecialTokens, TokenOptions

MAX_TOKENS = 800
"""`caption_max_length` of the published models"""

Compat = Literal["magi-1"] | None
Idle = Literal["keep", "out", "drop"]

_MAX_UNKNOWN = 0.5  # share of a prompt that the tokenizer may not know


class T5PromptEncoder:
    """Prompts to caption embeddings.

    The weights are read when a prompt is met that the cache does not hold.

    Attributes:
        caption_channels: width of an embedding.
        options: special tokens in front of every prompt.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        caption_channels: int,
        max_tokens: int = MAX_TOKENS,
        special_tokens: SpecialTokens | None = None,
        options: TokenOptions | None = None,
        cache: Path | str | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        idle: Idle = "keep",
    ) -> None:
        """Look at a T5 folder without reading its weights.

        Args:
            folder: the published `t5-v1_1-xxl` folder or one of its layout.
            caption_channels: width that the DiT expects.
            max_tokens: most tokens of a caption, special ones included.
            special_tokens: the table; without it only empty options work.
            options: special tokens; None for none.
            cache: folder of embeddings on disk, None for none; see
                :func:`magi_world.text.cache.default_folder`.
            device: where T5 runs.
            dtype: float32 as published; bfloat16 halves its memory.
            idle: what happens to T5 behind a call: it stays, its weights wait in host memory,
                or they are forgotten and read again.

        Raises:
            CheckpointError: a file is absent or of another width.
            ConfigError: options without a table.
            MissingPackage: sentencepiece is absent.
        """
        self.folder = Path(folder)
        self.caption_channels, self.max_tokens = caption_channels, max_tokens
        self.special_tokens = special_tokens
        self.options = TokenOptions() if options is None else options
        self.device, self.dtype, self.idle = torch.device(device), dtype, idle
        config, files = read_config(self.folder), weight_files(self.folder)
        if config.get("d_model") != caption_channels:
            raise CheckpointError(
                f"{self.folder / CONFIG}: d_model is {config.get('d_model')}, the model expects "
                f"captions of {caption_channels} channels"
            )
        self.tokenizer = tokens.PromptTokenizer(self.folder / tokens.FILE)
        if self.tokenizer.vocabulary > int(config.get("vocab_size", 0)):
            raise CheckpointError(
                f"{self.folder}: the tokenizer has {self.tokenizer.vocabulary} tokens, the model "
                f"an embedding of {config.get('vocab_size')}"
            )
        self.check_options(self.options)
        self.cache: EmbeddingCache | None = None
        if cache is not None:
            digest = fingerprint([self.folder / CONFIG, self.folder / tokens.FILE, *files])
            self.cache = EmbeddingCache(cache, f"{digest}-{dtype}-{max_tokens}")
        self._model: nn.Module | None = None
        self._place: Any = nullcontext()

    def check_options(self, options: TokenOptions) -> None:
        """Refuse options that need the table of special tokens when there is none.

        Raises:
            ConfigError: the table is absent.
        """
        if self.special_tokens is None and (options.names() or options.negative):
            raise ConfigError(
                f"{options} need the table special_tokens.npz, which this world was loaded without"
            )

    def move(self, device: str | torch.device, idle: Idle) -> None:
        """Run T5 elsewhere from now on; its weights are read again when they are needed."""
        self.device, self.idle = torch.device(device), idle
        self._model, self._place = None, nullcontext()

    # ---------------------------------------------------------------- prompts

    def clean(self, prompt: str, compat: Compat = None) -> str:
        """The text that is encoded: everything kept, or what the published cleaner leaves."""
        return clean(prompt) if compat is None else clean_published(prompt)

    def check(self, prompt: object, compat: Compat = None) -> None:
        """Check that a prompt can be used.

        With ``compat="magi-1"`` only the type matters: the published code encodes whatever its
        cleaner leaves, even nothing, and cuts what is too long.

        Raises:
            PromptError: not text, nothing left by the cleaner, mostly unknown to the tokenizer,
                or too long.
        """
        if not isinstance(prompt, str):
            raise PromptError(f"a prompt is text, got {type(prompt).__name__}: {prompt!r}")
        if compat is not None:
            return
        text = self.clean(prompt)
        if not text:
            raise PromptError(f"the prompt {prompt!r} is empty: at least one character is needed")
        unknown = self.tokenizer.unknown_share(text)
        if unknown > _MAX_UNKNOWN:
            raise PromptError(
                f"the text encoder does not know {unknown:.0%} of the prompt {prompt!r}: "
                "its vocabulary is English, French, German and Romanian"
            )
        room = self.max_tokens - len(self.options.names())
        length = len(self.tokenizer.encode(text))
        if length > room:
            raise PromptError(f"the prompt has {length} tokens, at most {room} are allowed")

    def embed(
        self,
        prompts: Sequence[str],
        *,
        remaining: Sequence[int | None] | None = None,
        compat: Compat = None,
    ) -> list[Tensor]:
        """Encode prompts, each alone, so that its numbers do not depend on its neighbours.

        Args:
            prompts: texts; all are checked before the first is encoded.
            remaining: for each the chunks that follow, for duration tokens; None counts as many.
            compat: "magi-1" uses the published cleaner.

        Returns:
            For each prompt `[n, caption_channels]` float32 on the CPU, n at most `max_tokens`,
            special tokens in front.

        Raises:
            PromptError: as :meth:`check`.
        """
        for prompt in prompts:
            self.check(prompt, compat)
        texts = [self.clean(prompt, compat) for prompt in prompts]
        plain = self._plain(texts)
        left: Sequence[int | None] = [None] * len(texts) if remaining is None else remaining
        return [
            self.with_tokens(plain[text], chunks) for text, chunks in zip(texts, left, strict=True)
        ]

    def with_tokens(self, caption: Tensor, remaining: int | None = None) -> Tensor:
        """Put the special tokens of one chunk in front of caption rows `[n, caption_channels]`."""
        names = self.options.names(remaining)
        if not names:
            return caption
        assert self.special_tokens is not None  # check_options has refused a world without them
        return self.special_tokens.prepend(caption, names, self.max_tokens)

    def negative(self, null_caption: Tensor) -> Tensor:
        """The null caption `[n, caption_channels]`, with negative tokens if the options say so."""
        if not self.options.negative:
            return null_caption
        assert self.special_tokens is not None
        return self.special_tokens.prepend(null_caption, NEGATIVE, len(null_caption))

    # ---------------------------------------------------------------- the model

    def _plain(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Embeddings of cleaned texts without special tokens, from the cache or computed."""
        found: dict[str, Tensor] = {}
        absent: list[str] = []
        for text in dict.fromkeys(texts):
            kept = None if self.cache is None else self.cache.get(text)
            if kept is not None and kept.shape[1:] == (self.caption_channels,):
                found[text] = kept
            else:
                absent.append(text)
        if absent:
            self._load()
            with self._place:
                for text in absent:
                    found[text] = self._encode(text)
                    if self.cache is not None:
                        self.cache.put(text, found[text])
            if self.idle == "drop":
                self._model, self._place = None, nullcontext()
        return found

    def _load(self) -> None:
        if self._model is not None:
            return
        home = "cpu" if self.idle == "out" else self.device
        self._model = load_t5(self.folder, device=home, dtype=self.dtype)
        self._place = OnDemand(self._model, self.device) if self.idle == "out" else nullcontext()

    @torch.no_grad()
    def _encode(self, text: str) -> Tensor:
        ids = self.tokenizer.encode(text)
        if len(ids) > self.max_tokens:  # as published: cut, the end token kept
            ids = [*ids[: self.max_tokens - 1], ids[-1]]
        assert self._model is not None
        input_ids = torch.tensor([ids], device=self.device)
        hidden = self._model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
        embedding: Tensor = hidden.last_hidden_state[0].float().cpu()
        return embedding
