"""What training reads: every chunk of the datasets in one array, and later its latents.

A store is a folder with `frames.npy` (uint8, memory-mapped), `table.npz` (one row a chunk) and,
once the VAE is trained, `latents.npy`. Chunks of an episode follow each other.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from magi_world.errors import DatasetError

_PARTIAL = "frames.partial.npy"


class Episode(Protocol):
    """One episode as :mod:`magi_world.training.episodes` reads it; row 0 is the reset chunk."""

    @property
    def seed(self) -> int: ...
    @property
    def frames(self) -> NDArray[np.uint8]: ...  # [n + 1, F, H, W, 3]
    @property
    def actions(self) -> NDArray[np.int64]: ...  # [n]
    @property
    def rewards(self) -> NDArray[np.float32]: ...  # [n] or [n, players]
    @property
    def valid_frames(self) -> NDArray[np.int64]: ...  # [n + 1]
    @property
    def health(self) -> NDArray[np.float32] | None: ...  # [n + 1]
    @property
    def terminated(self) -> bool: ...


@dataclass(frozen=True, eq=False)
class Store:
    """Chunks of all episodes, one after the other.

    Attributes:
        folder: where the arrays lie.
        frames: uint8 `[M, F, H, W, 3]`, memory-mapped.
        action: int64 `[M]`, the action that led to the chunk (the no-op for a reset chunk).
        reward: float32 `[M]`, or `[M, players]`.
        valid: int64 `[M]`, frames of the chunk that the game drew.
        health: float32 `[M]`, NaN where the source reports none.
        terminal: bool `[M]`, the episode ended in this chunk.
        held_out: bool `[M]`, the chunk belongs to a held-out episode.
        offsets: int64 `[episodes + 1]`, where each episode starts.
    """

    folder: Path
    frames: NDArray[np.uint8]
    action: NDArray[np.int64]
    reward: NDArray[np.float32]
    valid: NDArray[np.int64]
    health: NDArray[np.float32]
    terminal: NDArray[np.bool_]
    held_out: NDArray[np.bool_]
    offsets: NDArray[np.int64]

    @property
    def latents_path(self) -> Path:
        """File of the cached latents."""
        return self.folder / "latents.npy"

    def latents(self) -> NDArray[np.float16]:
        """Cached latents float16 `[M, Z, P, h, w]`.

        Raises:
            DatasetError: they have not been computed yet, or their file is damaged.
        """
        if not self.latents_path.exists():
            raise DatasetError(f"{self.latents_path} is missing: train the VAE stage first")
        return self.encoded(self.latents_path)

    def encoded(self, path: Path) -> NDArray[np.float16]:
        """Latents of all chunks in a file beside the frames, float16 `[M, Z, P, h, w]`.

        Raises:
            DatasetError: the file is damaged.
        """
        with told_if_damaged(path, "delete it, and the chunks are encoded again"):
            latents: NDArray[np.float16] = np.load(path)
            if len(latents) != len(self.action):
                raise ValueError(f"{len(latents)} chunks of {len(self.action)}")
        return latents

    def unusual_rewards(self) -> NDArray[np.bool_]:
        """Chunks whose reward, some player's, is another than it mostly is; bool `[M]`.

        Reset chunks, which nobody is rewarded for, are not among them.
        """
        usual = np.median(self.reward[~self.held_out], axis=0)
        by_player = np.asarray(self.reward != usual).reshape(len(self.action), -1)
        by_player[self.offsets[:-1]] = False
        return np.asarray(by_player.any(axis=1))

    def episodes(self, held_out: bool) -> NDArray[np.int64]:
        """Indices of the episodes of one part of the split."""
        return np.flatnonzero(self.held_out[self.offsets[:-1]] == held_out)

    def summary(self) -> dict[str, Any]:
        """Counts that a card states about its data."""
        starts = self.held_out[self.offsets[:-1]]
        return {
            "episodes": int(len(starts)),
            "held_out_episodes": int(starts.sum()),
            "chunks": int(len(self.action)),
            "held_out_chunks": int(self.held_out.sum()),
            "terminal_chunks": int(self.terminal.sum()),
            "real_tics": int(self.valid.sum()),
        }


def build_store(
    episodes: Iterable[Episode],
    folder: Path,
    is_held_out: Callable[[int], bool],
    expected_chunks: int,
) -> Store:
    """Write a store; a build that fails or is interrupted leaves nothing behind.

    Args:
        episodes: the data, in any order.
        folder: where the store goes.
        is_held_out: the split, by an episode's seed.
        expected_chunks: an upper bound of the number of chunks, reset chunks included.

    Raises:
        DatasetError: no episode at all, more chunks than expected, or frames of different shapes.
    """
    made = next((one for one in (folder.parent, folder) if not one.exists()), None)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return _build(episodes, folder, is_held_out, expected_chunks)
    except BaseException:
        (folder / _PARTIAL).unlink(missing_ok=True)
        if made is not None:
            shutil.rmtree(made)
        raise


def _build(
    episodes: Iterable[Episode],
    folder: Path,
    is_held_out: Callable[[int], bool],
    expected_chunks: int,
) -> Store:
    columns: dict[str, list[NDArray[Any]]] = {}
    offsets = [0]
    frames: Any = None  # a memory map, once the shape of a chunk is known
    partial = folder / _PARTIAL
    for episode in episodes:
        count = len(episode.frames)
        if frames is None:
            shape = (expected_chunks, *episode.frames.shape[1:])
            frames = np.lib.format.open_memmap(partial, "w+", np.uint8, shape)
        end = offsets[-1] + count
        if end > expected_chunks:
            raise DatasetError(f"more than the expected {expected_chunks} chunks in the episodes")
        if episode.frames.shape[1:] != frames.shape[1:]:
            raise DatasetError(
                f"frames of different sizes: chunks of {list(frames.shape[1:])}, and those of seed "
                f"{episode.seed} of {list(episode.frames.shape[1:])}"
            )
        frames[offsets[-1] : end] = episode.frames
        terminal = np.zeros(count, dtype=bool)
        terminal[-1] = episode.terminated
        health = episode.health if episode.health is not None else np.full(count, np.nan)
        row: dict[str, NDArray[Any]] = {
            "action": np.concatenate([[0], episode.actions]).astype(np.int64),
            "reward": np.concatenate([0 * episode.rewards[:1], episode.rewards]),
            "valid": episode.valid_frames.astype(np.int64),
            "health": health.astype(np.float32),
            "terminal": terminal,
            "held_out": np.full(count, is_held_out(episode.seed)),
        }
        for key, value in row.items():
            columns.setdefault(key, []).append(value)
        offsets.append(end)
    if frames is None:
        raise DatasetError("the dataset has no episodes")
    frames.flush()
    used = offsets[-1]
    del frames
    _shorten(partial, used)
    for made_of_others in ("table.npz", "latents.npy", "mirrored.npy", "scale.json"):
        (folder / made_of_others).unlink(missing_ok=True)  # without the first there is no store
    os.replace(partial, folder / "frames.npy")
    table = {key: np.concatenate(value) for key, value in columns.items()}
    table["offsets"] = np.array(offsets, dtype=np.int64)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".npz", delete=False) as file:
        np.savez(file, **table)  # type: ignore[arg-type]
    os.replace(file.name, folder / "table.npz")
    store = open_store(folder)
    (folder / "summary.json").write_text(json.dumps(store.summary(), indent=1))
    return store


def _shorten(path: Path, rows: int) -> None:
    """Cut a .npy file to its first rows, in place: the header is rewritten at its old length."""
    with path.open("r+b") as file:
        version = np.lib.format.read_magic(file)
        shape, order, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": order}
        text = repr({**header, "shape": (rows, *shape[1:])}).encode()
        magic = 10  # bytes of magic string, version and header length
        file.seek(0)
        file.write(np.lib.format.magic(*version) + (start - magic).to_bytes(2, "little"))
        file.write(text.ljust(start - magic - 1) + b"\n")
        file.truncate(start + rows * int(np.prod(shape[1:])) * dtype.itemsize)


def open_store(folder: Path) -> Store:
    """Open a store that :func:`build_store` has written.

    Raises:
        DatasetError: the folder holds no complete store, or a damaged one.
    """
    if not (folder / "table.npz").exists():
        raise DatasetError(f"{folder} holds no training store (table.npz is missing)")
    with told_if_damaged(folder, "delete it, and the data is read again"):
        with (folder / "table.npz").open("rb") as file, np.load(file) as table:
            columns = {key: table[key] for key in table.files}
        frames = np.load(folder / "frames.npy", mmap_mode="r")
        store = Store(folder=folder, frames=frames, **columns)
        if not len(frames) == len(store.action) == store.offsets[-1]:
            raise ValueError(f"{len(frames)} chunks, {len(store.action)} in table.npz")
    return store


@contextmanager
def told_if_damaged(path: Path, remedy: str) -> Iterator[None]:
    """Turn what reading a damaged file raises into a `DatasetError` that names a remedy."""
    try:
        yield
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path} is damaged ({error}): {remedy}") from error
