"""Special tokens of MAGI-1: learned rows in front of a caption (spec section 3.3).

The published table, `special_tokens.npz`, holds vectors of the text encoder's output space. A
token says something that a sentence says badly: the quality wanted, how many chunks are left, the
style, or, in front of the null caption, what guidance must lead away from.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from magi_world.errors import CheckpointError, ConfigError

MAX_DURATION = 8
"""chunks remaining that a duration token can say; more count as this many"""

NEGATIVE = ("CAPTION", "LOGO", "TRANS", "BORDERNESS")
"""tokens in front of the null caption, in the order in which they are prepended"""

_ROWS = {
    "TRANS": 0,
    "HQ": 1,
    "STATIC_FIRST_FRAMES": 2,
    "DYNAMIC_FIRST_FRAMES": 3,
    "BORDERNESS": 4,
    **{f"DURATION_{k}": 6 + k for k in range(1, MAX_DURATION + 1)},
    "THREE_D_MODEL": 15,
    "TWO_D_ANIME": 16,
}
"""row of `other_tokens` by name; the remaining rows are unused"""

_ARRAYS = ("caption_token", "logo_token", "other_tokens")
_OPENINGS = ("static", "dynamic")
_STYLES = ("3d", "anime")


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """Which special tokens a caption gets; the default is none.

    Raises:
        ConfigError: a value that is not among those listed.
    """

    quality: Literal["hq"] | None = None
    """high quality"""
    duration: Literal["auto"] | int | None = None
    """chunks that remain, this one included: counted, or a fixed 1…8"""
    style: tuple[str, ...] = ()
    """any of "3d" (rendered) and "anime" (drawn)"""
    opening: tuple[str, ...] = ()
    """any of "static" and "dynamic": how much the first frames move"""
    borders: bool = False
    """frames with black borders"""
    negative: bool = False
    """guide away from captions, logos, cuts and borders"""

    def __post_init__(self) -> None:
        if self.quality not in (None, "hq"):
            raise ConfigError(f"quality {self.quality!r} is not 'hq' or None")
        if self.duration not in (None, "auto", *range(1, MAX_DURATION + 1)) or isinstance(
            self.duration, bool
        ):
            raise ConfigError(f"duration {self.duration!r} is not 'auto', 1…{MAX_DURATION} or None")
        for name, allowed in (("style", _STYLES), ("opening", _OPENINGS)):
            values = getattr(self, name)
            if not isinstance(values, tuple) or not set(values) <= set(allowed):
                raise ConfigError(f"{name} {values!r} is not a tuple of {allowed}")

    @classmethod
    def published(cls) -> "TokenOptions":
        """What the published run scripts switch on: quality and counted duration."""
        return cls(quality="hq", duration="auto")

    def names(self, remaining: int | None = None) -> tuple[str, ...]:
        """Tokens of one chunk in the order in which they are prepended: the last comes first.

        Args:
            remaining: chunks that follow this one; None when nobody knows, which counts as many.
        """
        names = [
            name
            for wanted, name in (
                ("static" in self.opening, "STATIC_FIRST_FRAMES"),
                ("dynamic" in self.opening, "DYNAMIC_FIRST_FRAMES"),
                (self.borders, "BORDERNESS"),
                (self.quality == "hq", "HQ"),
                ("3d" in self.style, "THREE_D_MODEL"),
                ("anime" in self.style, "TWO_D_ANIME"),
            )
            if wanted
        ]
        if self.duration == "auto":
            left = MAX_DURATION if remaining is None else min(remaining + 1, MAX_DURATION)
            names.append(f"DURATION_{left}")
        elif self.duration is not None:
            names.append(f"DURATION_{self.duration}")
        return tuple(names)


class SpecialTokens:
    """The table of special tokens, rounded to float16 as published and held in float32."""

    def __init__(self, vectors: dict[str, Tensor]) -> None:
        self._vectors = vectors

    @classmethod
    def load(cls, path: Path | str, caption_channels: int) -> "SpecialTokens":
        """Read `special_tokens.npz`.

        Args:
            path: the published file, or one of its layout.
            caption_channels: width of a caption token of the model.

        Raises:
            CheckpointError: no such file, no table, or vectors of another width.
        """
        path = Path(path)
        if not path.is_file():
            raise CheckpointError(f"there is no table of special tokens {path}")
        try:
            # opened here: numpy forgets to close a file that it cannot read
            with path.open("rb") as file, np.load(file, allow_pickle=False) as table:
                arrays = {name: np.asarray(table[name]) for name in _ARRAYS}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"{path} is no table of special tokens (arrays {', '.join(_ARRAYS)}): {error}"
            ) from None
        rows = {"caption_token": 1, "logo_token": 1, "other_tokens": 1 + max(_ROWS.values())}
        for name, least in rows.items():
            shape = arrays[name].shape
            if len(shape) != 2 or shape[0] < least or shape[1] != caption_channels:
                raise CheckpointError(
                    f"{path}: {name} has shape {shape}, "
                    f"expected at least {least} rows of {caption_channels} channels"
                )
        vectors = {
            "CAPTION": arrays["caption_token"][:1],
            "LOGO": arrays["logo_token"][:1],
            **{name: arrays["other_tokens"][row : row + 1] for name, row in _ROWS.items()},
        }
        halves = {name: vector.astype(np.float16) for name, vector in vectors.items()}
        if not all(np.isfinite(half).all() for half in halves.values()):
            raise CheckpointError(f"{path} holds NaN, infinity or values beyond float16")
        return cls({name: torch.from_numpy(half).float() for name, half in halves.items()})

    def vector(self, name: str) -> Tensor:
        """The token `[1, caption_channels]`, float32.

        Raises:
            ConfigError: no token of that name.
        """
        if name not in self._vectors:
            raise ConfigError(f"special token {name!r} is not one of {sorted(self._vectors)}")
        return self._vectors[name]

    def prepend(self, caption: Tensor, names: tuple[str, ...], max_tokens: int) -> Tensor:
        """Put tokens in front of caption rows, each before what is there already.

        Args:
            caption: `[n, caption_channels]`.
            names: tokens, the last of which comes first.
            max_tokens: rows kept; the end of the caption falls off, as published.

        Returns:
            `[min(n + len(names), max_tokens), caption_channels]`.
        """
        rows = [self.vector(name).to(caption) for name in reversed(names)]
        return torch.cat([*rows, caption])[:max_tokens]
