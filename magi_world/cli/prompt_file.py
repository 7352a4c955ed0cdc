"""The file behind `--prompts`: a line a chunk, or lines that say from which second they hold.

    0: a harbour at dawn
    2.5: fog comes in from the sea
    4: [kv 1,2,2,2] the inside of the lighthouse

Numbers in brackets are KV ranges, the noisiest stage first, of the first chunk under their line: a
shot that sees nothing of the last one while its layout forms begins anew.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from magi_world.errors import PromptError
from magi_world.sampling.source import ChunkPrompt

# the space tells "2.5: it rains" from "10:30 in the morning"
_TIMED = re.compile(r"\s*(-?(?:\d+(?:\.\d*)?|\.\d+))\s*:(?:\s+(.*))?")
_BRACKET = re.compile(r"\[kv\b")
_RANGES = re.compile(r"\[kv\s+(\d+(?:\s*,\s*\d+)*)\]\s*(.*)")
_SLACK = 1e-6  # seconds; a chunk that begins at 1/3 s begins at "0.333333"


@dataclass(frozen=True)
class PromptFile:
    """Prompts in order, each with the line it stands on."""

    path: Path
    prompts: tuple[str, ...]
    lines: tuple[int, ...]
    """line number of each prompt, from 1"""
    seconds: tuple[float, ...] | None
    """from which second each holds, strictly ascending from 0; None: each holds for one chunk"""
    kv_ranges: tuple[tuple[int, ...] | None, ...]
    """KV ranges of the first chunk under each prompt; None: those of the video"""

    @classmethod
    def read(cls, path: Path) -> "PromptFile":
        """Read a file of UTF-8 text; empty lines at its end count for nothing.

        Raises:
            PromptError: no such file, no text, an empty line between prompts, lines of both forms,
                seconds that do not ascend from 0, or a bracket without KV ranges in it.
        """
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise PromptError(f"{path}: is not UTF-8 text ({error})") from None
        except OSError as error:
            reason = error.strerror or error
            raise PromptError(f"{path}: cannot be read as a file of prompts: {reason}") from None
        rows = [line.strip() for line in text.rstrip().split("\n")]
        if rows == [""]:
            raise PromptError(f"{path}: there is no prompt in it")
        numbers = tuple(range(1, len(rows) + 1))
        matches = [_TIMED.fullmatch(row) for row in rows]
        timed = [match for match in matches if match]
        if timed and len(timed) < len(rows):
            number = next(n for n, match in zip(numbers, matches, strict=True) if not match)
            raise PromptError(
                f"{path}, line {number}: {rows[number - 1]!r} does not begin with `second: ` as "
                "other lines do: all lines are `second: prompt`, or none"
            )
        seconds = tuple(float(match[1]) for match in timed) if timed else None
        prompts = tuple((match[2] or "").strip() for match in timed) if timed else tuple(rows)
        ranges: list[tuple[int, ...] | None] = [None] * len(prompts)
        for index, prompt in enumerate(prompts):
            if match := _RANGES.fullmatch(prompt):
                ranges[index] = tuple(int(count) for count in match[1].split(","))
                prompts = (*prompts[:index], match[2].strip(), *prompts[index + 1 :])
            elif _BRACKET.match(prompt):  # a slip of the pen, which the encoder would take as text
                raise PromptError(
                    f"{path}, line {numbers[index]}: {prompt!r} does not begin with KV ranges "
                    "such as [kv 1,2,2,2]"
                )
        for number, prompt in zip(numbers, prompts, strict=True):
            if not prompt:
                raise PromptError(f"{path}, line {number}: the prompt is empty")
        if seconds is not None:
            if seconds[0] != 0:
                raise PromptError(f"{path}, line 1: the first prompt must hold from second 0")
            for number, before, after in zip(numbers[1:], seconds, seconds[1:], strict=False):
                if after <= before:
                    raise PromptError(
                        f"{path}, line {number}: second {after:g} does not come after {before:g}"
                    )
        return cls(path, prompts, numbers, seconds, tuple(ranges))

    def for_chunks(self, starts: Sequence[float]) -> list[ChunkPrompt]:
        """One prompt for each chunk, with KV ranges where its line gives some.

        A prompt with a second holds for the chunks that begin at this second or later. With a
        line a chunk the last line holds for all chunks behind it.

        Args:
            starts: ascending seconds at which the chunks begin.
        """
        indices = self._indices(starts)
        firsts = [before != index for before, index in zip([None, *indices], indices, strict=False)]
        return [
            ChunkPrompt(self.prompts[index], self.kv_ranges[index] if first else None)
            for index, first in zip(indices, firsts, strict=True)
        ]

    @property
    def max_kv_range(self) -> int | None:
        """Largest KV range that a line asks for."""
        return max((max(ranges) for ranges in self.kv_ranges if ranges), default=None)

    def unused(self, starts: Sequence[float]) -> list[int]:
        """Numbers of the lines whose prompts hold for none of these chunks."""
        used = set(self._indices(starts))
        return [number for index, number in enumerate(self.lines) if index not in used]

    def _indices(self, starts: Sequence[float]) -> list[int]:
        if self.seconds is None:
            return [min(index, len(self.prompts) - 1) for index in range(len(starts))]
        return [max(0, bisect_right(self.seconds, start + _SLACK) - 1) for start in starts]
