"""The prompts of a world in the form that its layers read, kept up to a number of bytes."""

from collections.abc import Callable

from magi_world.models.dit import CaptionKV

CAPACITY = 1 << 28
"""bytes; a prompt of the longest kind takes up to a third of that in the 24B model"""


class KeptCaptions:
    """Keys and values of prompts; those used longest ago go first."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        """Keep so many bytes, and the newest caption whatever it takes."""
        self.capacity = capacity
        self.cleared = 0
        """how often everything was dropped, because the world had become another"""
        self._kept: dict[str | None, CaptionKV] = {}
        self._bytes = 0

    def get(self, prompt: str | None, make: Callable[[], CaptionKV]) -> CaptionKV:
        """The caption of a prompt, made if it is not there; None stands for "no prompt"."""
        caption = self._kept.pop(prompt, None)
        if caption is None:
            caption = make()
            self._bytes += _size(caption)
            while self._kept and self._bytes > self.capacity:
                self._bytes -= _size(self._kept.pop(next(iter(self._kept))))
        self._kept[prompt] = caption  # the latest comes last
        return caption

    def clear(self) -> None:
        """Keep nothing."""
        self._kept.clear()
        self._bytes = 0
        self.cleared += 1

    def __len__(self) -> int:
        return len(self._kept)


def _size(caption: CaptionKV) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in caption)
