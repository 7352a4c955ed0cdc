"""Episodes as the measures see them, and how they are cut to clips of equal length."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from magi_world.errors import DatasetError
from magi_world.evaluation.metrics import Frames

Integers = npt.NDArray[np.int64]


class Episode(Protocol):
    """One episode of the real game, chunk by chunk; chunk 0 is the reset's, played with the no-op.

    Chunk `k` (k >= 1) was played under `actions[k - 1]`. Only the last chunk may have less than all
    of its frames valid: the rest repeats the last frame.
    """

    @property
    def seed(self) -> int: ...

    @property
    def frames(self) -> Frames:
        """uint8 `[n + 1, F, H, W, 3]`"""
        ...

    @property
    def actions(self) -> npt.NDArray[Any]:
        """integers `[n]`, indices into the card's prompts"""
        ...

    @property
    def rewards(self) -> npt.NDArray[Any]:
        """float `[n]`, or `[n, players]`"""
        ...

    @property
    def valid_frames(self) -> npt.NDArray[Any]:
        """integers `[n + 1]`, 0 to F"""
        ...

    @property
    def health(self) -> npt.NDArray[Any] | None:
        """float `[n + 1]`, the player's health after each chunk, 0 to 100; None if unknown"""
        ...

    @property
    def terminated(self) -> bool:
        """whether the last chunk ended the game, rather than a limit"""
        ...


def whole_chunks(episode: Episode) -> int:
    """How many chunks from the start have all of their frames."""
    partial = np.flatnonzero(np.asarray(episode.valid_frames) < episode.frames.shape[1])
    return int(partial[0]) if partial.size else len(episode.frames)


def played(episode: Episode) -> Integers:
    """The action behind every chunk, int64 `[n + 1]`; the reset chunk has the no-op, 0."""
    return np.concatenate([[0], np.asarray(episode.actions)]).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Clips:
    """Clips of one length: `prefix` chunks to be given, then `horizon` chunks to be predicted."""

    frames: Frames
    """uint8 `[n, prefix + horizon, F, H, W, 3]`"""
    actions: Integers
    """int64 `[n, prefix + horizon]`: the action behind every chunk"""
    prefix: int
    episode: Integers
    """int64 `[n]`: which episode each clip is from; clips of one episode may overlap"""

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def horizon(self) -> int:
        """Chunks after the prefix."""
        return int(self.frames.shape[1]) - self.prefix

    def __getitem__(self, rows: slice | Integers) -> "Clips":
        return Clips(
            frames=self.frames[rows], actions=self.actions[rows],
            prefix=self.prefix, episode=self.episode[rows],
        )  # fmt: skip


def cut_clips(
    episodes: Sequence[Episode], count: int, *, prefix: int, horizon: int, seed: int
) -> Clips:
    """Cut up to `count` clips at random places of the episodes, no place twice, whole chunks only.

    Raises:
        DatasetError: no episode is long enough.
    """
    length = prefix + horizon
    places = [
        (index, start)
        for index, episode in enumerate(episodes)
        for start in range(whole_chunks(episode) - length + 1)
    ]
    if not places:
        longest = max((whole_chunks(episode) for episode in episodes), default=0)
        raise DatasetError(
            f"a clip needs {length} chunks ({prefix} given, {horizon} predicted); "
            f"the longest of {len(episodes)} held-out episodes has {longest}"
        )
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(len(places), size=min(count, len(places)), replace=False).tolist())
    frames, actions = [], []
    for index, start in (places[place] for place in chosen):
        episode = episodes[index]
        frames.append(episode.frames[start : start + length])
        actions.append(played(episode)[start : start + length])
    order = rng.permutation(len(chosen))  # so that the first batch is no single episode
    owner = np.array([places[place][0] for place in chosen], np.int64)
    return Clips(
        frames=np.stack(frames)[order], actions=np.stack(actions)[order],
        prefix=prefix, episode=owner[order],
    )  # fmt: skip
