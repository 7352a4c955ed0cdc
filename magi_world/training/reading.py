"""How recordings of single pictures become chunks; a recipe's section `[data]` says it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.errors import ConfigError, DatasetError

MIXED_ACTIONS = ("refuse", "first", "majority")

Grouped = tuple[
    npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]
]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data is read that was not recorded in the chunks of the world; checked when built.

    Raises:
        ConfigError: a value that cannot work.
    """

    steps_per_chunk: int = 4
    """steps of the recording that share one action and make one chunk: all of a chunk's frames, or
    an even part of them, each picture then held for several frames"""
    mixed_actions: str = "refuse"
    """what governs a chunk whose steps had different actions: nothing, it is an error ("refuse");
    the first step's action ("first"); the one that most steps had, the earliest of equals
    ("majority")"""
    resize: bool = False
    """average pictures to the world's size; else another size is an error"""

    def __post_init__(self) -> None:
        if type(self.steps_per_chunk) is not int or self.steps_per_chunk < 1:
            raise ConfigError(f"steps_per_chunk {self.steps_per_chunk!r} is no number from 1 on")
        if self.mixed_actions not in MIXED_ACTIONS:
            raise ConfigError(f"mixed_actions {self.mixed_actions!r} is not one of {MIXED_ACTIONS}")
        if type(self.resize) is not bool:
            raise ConfigError(f"resize {self.resize!r} is not true or false")

    def check_chunk(self, chunk_frames: int) -> None:
        """Refuse a number of steps that does not divide a chunk.

        Raises:
            ConfigError: it does not.
        """
        if chunk_frames % self.steps_per_chunk:
            raise ConfigError(
                f"steps_per_chunk {self.steps_per_chunk} does not divide the {chunk_frames} frames "
                "of a chunk"
            )


def group(
    frames: npt.NDArray[np.uint8],
    actions: npt.NDArray[np.int64],
    rewards: npt.NDArray[np.float32],
    *,
    terminated: bool,
    reading: Reading,
    chunk_frames: int,
    source: str,
) -> Grouped:
    """Group the n steps of one episode into chunks.

    The first picture, repeated, is the first chunk. A last group that is too short is filled, with
    the last picture, where the episode terminates in it: the end is what the outcome heads learn
    from. A cut without an end teaches nothing and is left out.

    Args:
        frames: uint8 `[n + 1, H, W, 3]`.
        actions: int64 `[n]`.
        rewards: float32 `[n]`; a chunk earns their sum.
        terminated: the episode ended by itself.
        reading: how.
        chunk_frames: F, frames of a chunk.
        source: names the episode in errors.

    Returns:
        Frames uint8 `[m + 1, F, H, W, 3]`, actions int64 `[m]`, rewards float32 `[m]` and real
        frames int64 `[m + 1]` of the chunks.

    Raises:
        DatasetError: shorter than one chunk, or mixed actions where they are refused.
    """
    steps = reading.steps_per_chunk
    missing = -len(actions) % steps
    if missing and not terminated:
        keep = len(actions) - len(actions) % steps
        frames, actions, rewards = frames[: keep + 1], actions[:keep], rewards[:keep]
        missing = 0
    if not len(actions):
        raise DatasetError(f"{source}: shorter than one chunk of {steps} steps")
    groups = np.concatenate([actions, np.repeat(actions[-1:], missing)]).reshape(-1, steps)
    chosen = _governing(groups, steps - missing, reading, source)
    paid = np.concatenate([rewards, np.zeros(missing, np.float32)]).reshape(-1, steps)
    held = chunk_frames // steps
    shown = np.concatenate([frames[1:], np.repeat(frames[-1:], missing, axis=0)])
    shown = np.concatenate([np.repeat(frames[:1], steps, axis=0), shown])
    chunks = np.repeat(shown, held, axis=0).reshape(-1, chunk_frames, *frames.shape[1:])
    valid = np.full(len(chunks), chunk_frames, np.int64)
    valid[-1] -= missing * held
    return chunks, chosen, paid.sum(axis=1), valid


def _governing(
    groups: npt.NDArray[np.int64], last: int, reading: Reading, source: str
) -> npt.NDArray[np.int64]:
    """The action of each group `[m]`, of which the last has `last` steps of its own."""
    mixed = np.flatnonzero((groups != groups[:, :1]).any(axis=1))
    chosen = groups[:, 0].copy()
    if len(mixed) and reading.mixed_actions == "refuse":
        first, steps = int(mixed[0]), groups.shape[1]
        raise DatasetError(
            f"{source}, steps {first * steps} to {first * steps + steps - 1}: the action changes "
            f"within a chunk ({groups[first].tolist()}); record with each action repeated {steps} "
            'times, or choose "first" or "majority" for mixed_actions in the recipe\'s [data]'
        )
    if reading.mixed_actions == "majority":
        for row in mixed:
            own: Sequence[Any] = groups[row, : last if row == len(groups) - 1 else None].tolist()
            chosen[row] = max(own, key=own.count)  # the earliest of equals
    return chosen
