"""Captions as the sampler reads them: cross-attention keys and values, computed once a prompt.

Shape suffixes: Y caption tokens, n tokens per chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import torch
from torch import Tensor

from magi_world.errors import PromptError
from magi_world.kernels.attention import AttnSlices
from magi_world.models.dit import CaptionKV
from magi_world.sampling.model_passes import ModelPasses

if TYPE_CHECKING:
    from magi_world.text.encoder import T5PromptEncoder
    from magi_world.world import World

Compat = Literal["magi-1"] | None
"""whose behaviour: the published code's, or None for the sane one"""


@dataclass(frozen=True, eq=False)
class Caption:
    """Keys and values of one caption in every layer."""

    kv: CaptionKV
    again: Callable[[], CaptionKV] | None = None
    """computes ``kv`` anew, for those who want to know what keeping it is worth"""

    @property
    def length(self) -> int:
        """Tokens Y."""
        return self.kv[0][0].shape[0]


class PackedCaptions(NamedTuple):
    """The captions of one forward."""

    kv: CaptionKV
    """keys and values of every distinct caption, one after the other"""
    cross: AttnSlices
    """which chunk reads which rows"""


def pack(captions: Sequence[Caption], tokens_per_chunk: int) -> PackedCaptions:
    """Lay every distinct caption down once and point its chunks at it."""
    rows: dict[Caption, tuple[int, int]] = {}
    end = 0
    for caption in captions:
        if caption not in rows:
            rows[caption] = (end, end + caption.length)
            end = rows[caption][1]
    if len(rows) == 1 and torch.is_inference_mode_enabled():
        packed = captions[0].kv  # elsewhere a copy: gradients cannot pass tensors of that mode
    else:
        packed = [
            (torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer]))
            for layer in zip(*(caption.kv for caption in rows), strict=True)
        ]
    n = tokens_per_chunk
    cross = AttnSlices.from_list(
        (i * n, (i + 1) * n, *rows[caption], 0) for i, caption in enumerate(captions)
    )
    return PackedCaptions(packed, cross)


class CaptionBook:
    """The captions of one video: each made when its chunk comes up, and kept while it is used."""

    def __init__(
        self,
        world: "World",
        *,
        keep: int,
        compat: Compat = None,
        passes: ModelPasses | None = None,
    ) -> None:
        """Set the book up.

        Args:
            world: gives text encoder and DiT.
            keep: captions kept at least, beside the null caption: those of a window.
            compat: "magi-1" encodes what the published cleaner leaves.
            passes: counts the captions.
        """
        self._world, self._compat, self._keep = world, compat, keep
        self._passes = ModelPasses() if passes is None else passes
        self._magi1 = world.config.magi1 is not None
        self._kept: dict[tuple[str, tuple[str, ...]], Caption] = {}
        self._rows: dict[tuple[str, tuple[str, ...]], Tensor] = {}
        self._null: Caption | None = None

    def check(self, prompt: object) -> None:
        """Check that a prompt can be used.

        Raises:
            PromptError: it cannot.
        """
        if not self._magi1:
            self._world.check_prompt(prompt)
        elif self._world.text is None:
            raise PromptError(f"the world {self._world.name!r} was loaded without a text encoder")
        else:
            self._t5.check(prompt, self._compat)

    def read_ahead(self, prompts: Sequence[str], remaining: Sequence[int | None]) -> None:
        """Encode prompts that are known already, so that the text encoder comes in only once."""
        if self._magi1:
            pairs = zip(prompts, remaining, strict=True)
            wanted = {self._key(prompt, left): (prompt, left) for prompt, left in pairs}
            texts, counts = zip(*wanted.values(), strict=True)
            rows = self._t5.embed(texts, remaining=counts, compat=self._compat)
            self._rows.update(zip(wanted, rows, strict=True))

    def of(self, prompt: str, remaining: int | None) -> Caption:
        """The caption of a chunk.

        Args:
            prompt: checked text.
            remaining: chunks that follow, for duration tokens; None when nobody knows.
        """
        key = self._key(prompt, remaining)
        caption = self._kept.pop(key, None)
        if caption is None:
            caption = self._make(key, prompt, remaining)
        self._kept[key] = caption  # the latest comes last
        while len(self._kept) > self._keep:
            self._kept.pop(next(iter(self._kept)))
        return caption

    def null(self) -> Caption:
        """The caption that stands for "no prompt", with negative tokens if they are asked for."""
        if self._null is None:
            if self._magi1 and self._world.text is not None:
                table = self._world.dit.y_embedder.null_caption_embedding
                rows = self._world.config.sampling.null_prompt_tokens
                self._null = self._project(self._t5.negative(table)[:rows])
            else:
                self._null = Caption(self._world.caption(None))
        return self._null

    @property
    def _t5(self) -> "T5PromptEncoder":
        return cast("T5PromptEncoder", self._world.text)

    def _key(self, prompt: str, remaining: int | None) -> tuple[str, tuple[str, ...]]:
        """Chunks with the same text and the same special tokens have the same caption."""
        return prompt, self._t5.options.names(remaining) if self._magi1 else ()

    @torch.inference_mode()
    def _make(
        self, key: tuple[str, tuple[str, ...]], prompt: str, remaining: int | None
    ) -> Caption:
        if not self._magi1:
            return Caption(self._world.caption(prompt))
        rows = self._rows.get(key)
        if rows is None:
            (rows,) = self._t5.embed([prompt], remaining=[remaining], compat=self._compat)
        return self._project(rows)

    @torch.inference_mode()
    def _project(self, rows: Tensor) -> Caption:
        self._passes.add_caption(self._world.dit.config, len(rows))
        dit, tokens = self._world.dit, rows.to(self._world.device)
        return Caption(dit.caption_kv(tokens), lambda: dit.caption_kv(tokens))
