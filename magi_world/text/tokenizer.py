"""The text encoder's tokenizer: the published `spiece.model`, read by sentencepiece."""

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from magi_world.errors import CheckpointError, missing_package

FILE = "spiece.model"
"""name of the tokenizer's file in the published folder"""

_PAD, _EOS, _UNKNOWN = 0, 1, 2  # ids that every T5 tokenizer has


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise missing_package("sentencepiece", "magi1", "the T5 tokenizer") from error
    return sentencepiece


class PromptTokenizer:
    """Texts to token ids with the end token, as T5 does it."""

    def __init__(self, path: Path | str) -> None:
        """Read the tokenizer.

        Raises:
            CheckpointError: no such file, or no T5 tokenizer.
            MissingPackage: sentencepiece is absent.
        """
        self.path = Path(path)
        sentencepiece = _sentencepiece()
        if not self.path.is_file():
            raise CheckpointError(f"there is no tokenizer {self.path}")
        try:
            # from memory: sentencepiece prints to stderr about files it cannot parse
            self._pieces = sentencepiece.SentencePieceProcessor(model_proto=self.path.read_bytes())
        except (RuntimeError, OSError) as error:
            raise CheckpointError(f"{self.path} is no sentencepiece model: {error}") from None
        ids = (self._pieces.pad_id(), self._pieces.eos_id(), self._pieces.unk_id())
        if ids != (_PAD, _EOS, _UNKNOWN):
            raise CheckpointError(
                f"{self.path}: ids of padding, end and unknown are {ids}, those of T5 are "
                f"{(_PAD, _EOS, _UNKNOWN)}"
            )

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self._pieces.get_piece_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text and the end token; an empty text is the end token alone."""
        ids: list[int] = self._pieces.encode(text)
        return [*ids, _EOS]

    def unknown_share(self, text: str) -> float:
        """Share of a text's characters, spaces left out, that no token stands for; 0 … 1."""
        # characters after sentencepiece's own normalisation; an unknown piece spells its text
        pieces = [piece.replace("\u2581", "") for piece in self._pieces.encode(text, out_type=str)]
        ids = self._pieces.encode(text)
        unknown = sum(len(p) for p, i in zip(pieces, ids, strict=True) if i == _UNKNOWN)
        return unknown / max(1, sum(map(len, pieces)))


def train_tokenizer(texts: Iterable[str], vocabulary: int, path: Path) -> None:
    """Train a T5 tokenizer on texts and write its `spiece.model`: for checkpoints made here.

    Args:
        texts: one sentence each.
        vocabulary: number of tokens at most; a small corpus has fewer.
        path: file to write, under a temporary name first.

    Raises:
        MissingPackage: sentencepiece is absent.
    """
    sentencepiece = _sentencepiece()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        pad_id=_PAD,
        eos_id=_EOS,
        unk_id=_UNKNOWN,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_bytes(model.getvalue())
    os.replace(temporary, path)
