"""Held-out episodes cut to clips of equal length, and pairs of chunks for the inverse model."""

from collections.abc import Iterable, Sequence
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

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def horizon(self) -> int:
        """Chunks after the prefix."""
        return int(self.frames.shape[1]) - self.prefix

    def __getitem__(self, rows: slice) -> "Clips":
        return Clips(frames=self.frames[rows], actions=self.actions[rows], prefix=self.prefix)


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
    return Clips(frames=np.stack(frames)[order], actions=np.stack(actions)[order], prefix=prefix)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """What the inverse model sees: a chunk and the moment before it, in grey."""

    pictures: Frames
    """uint8 `[n, 2 + F, H, W]`: the last two frames before the chunk, then the chunk"""
    actions: Integers
    """int64 `[n]`: the action behind the chunk"""
    before: Integers
    """int64 `[n]`: the action behind the chunk before"""

    def __len__(self) -> int:
        return len(self.actions)


def grey(frames: Frames) -> Frames:
    """Mean of the colours: uint8 `[..., H, W, 3]` to uint8 `[..., H, W]`."""
    tones: Frames = (frames.sum(axis=-1, dtype=np.uint16) // 3).astype(np.uint8)
    return tones


def pairs_of(frames: Frames, actions: Integers) -> Pairs:
    """Pair every chunk but the first with the one before it.

    Takes consecutive chunks uint8 `[n, F, H, W, 3]` and the action behind each, `[n]`.
    """
    tones = grey(frames)
    return Pairs(
        pictures=np.concatenate([tones[:-1, -2:], tones[1:]], axis=1),
        actions=actions[1:],
        before=actions[:-1],
    )


def join_pairs(parts: Iterable[Pairs]) -> Pairs:
    """Concatenate; raises `DatasetError` when there is nothing."""
    parts = list(parts)
    if not parts:
        raise DatasetError("there are no two consecutive chunks for the inverse model")
    return Pairs(
        pictures=np.concatenate([part.pictures for part in parts]),
        actions=np.concatenate([part.actions for part in parts]),
        before=np.concatenate([part.before for part in parts]),
    )


def episode_pairs(episode: Episode) -> Pairs:
    """Pairs of the whole chunks of one episode; there may be none."""
    end = whole_chunks(episode)
    return pairs_of(episode.frames[:end], played(episode)[:end])
