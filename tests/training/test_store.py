# mypy: disable-error-code="arg-type,var-annotated"
"""The training store: chunks of all episodes in one array, complete or not there at all."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from magi_world.errors import DatasetError
from magi_world.training.store import Store, _shorten, build_store, open_store


@dataclass
class Played:
    """An episode of n steps whose frames say seed and chunk."""

    seed: int
    steps: int
    terminated: bool = True
    knows_health: bool = True

    @property
    def frames(self) -> NDArray[np.uint8]:
        frames = np.zeros((self.steps + 1, 4, 2, 2, 3), np.uint8)
        frames[..., 0] = self.seed % 256
        frames[..., 1] = np.arange(self.steps + 1).reshape(-1, 1, 1, 1)
        return frames

    @property
    def actions(self) -> NDArray[np.int64]:
        return np.arange(self.steps) % 3

    @property
    def rewards(self) -> NDArray[np.float32]:
        return self.valid_frames[1:].astype(np.float32)

    @property
    def valid_frames(self) -> NDArray[np.int64]:
        valid = np.full(self.steps + 1, 4, np.int64)
        valid[-1] = 1 if self.terminated else 4
        return valid

    @property
    def health(self) -> NDArray[np.float32] | None:
        if not self.knows_health:
            return None
        return 100 - np.arange(self.steps + 1, dtype=np.float32)


def odd(seed: int) -> bool:
    return seed % 2 == 1


def build(folder: Path, episodes: list[Played], spare: int = 0) -> Store:
    chunks = sum(episode.steps + 1 for episode in episodes)
    return build_store(episodes, folder, odd, chunks + spare)


def same(one: Store, other: Store) -> bool:
    names = ("frames", "action", "reward", "valid", "terminal", "held_out", "offsets")
    equal = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
    return equal and np.array_equal(one.health, other.health, equal_nan=True)


@settings(max_examples=25)
@given(
    st.lists(st.builds(Played, st.integers(0, 99), st.integers(1, 7)), min_size=1, max_size=6),
    st.sampled_from([0, 1, 90, 1000]),
)
def test_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[Played], spare: int
) -> None:
    """Also when fewer chunks come than expected and the array is cut."""
    folder = tmp_path_factory.mktemp("store")
    store = build(folder, episodes, spare)
    assert same(store, open_store(folder))
    chunks = sum(episode.steps + 1 for episode in episodes)
    assert store.frames.shape == (chunks, 4, 2, 2, 3) and store.frames.dtype == np.uint8
    assert np.array_equal(store.frames, np.concatenate([e.frames for e in episodes]))
    assert (folder / "frames.npy").stat().st_size == store.frames.nbytes + store.frames.offset  # type: ignore[attr-defined]
    assert store.offsets.tolist() == [0, *np.cumsum([e.steps + 1 for e in episodes])]
    for episode, first, end in zip(episodes, store.offsets, store.offsets[1:], strict=False):
        assert store.action[first] == 0 and store.reward[first] == 0  # the reset chunk
        assert np.array_equal(store.action[first + 1 : end], episode.actions)
        assert np.array_equal(store.reward[first + 1 : end], episode.rewards)
        assert np.array_equal(store.valid[first:end], episode.valid_frames)
        assert np.array_equal(store.health[first:end], episode.health)
        assert store.terminal[first:end].tolist() == [False] * episode.steps + [True]
        assert (store.held_out[first:end] == odd(episode.seed)).all()
    assert not any(path.name.endswith((".partial.npy", ".partial")) for path in folder.iterdir())


def test_the_parts_of_the_split_and_the_summary(tmp_path: Path) -> None:
    episodes = [Played(4, 3), Played(5, 2, terminated=False), Played(7, 4)]
    store = build(tmp_path / "store", episodes)
    assert store.episodes(held_out=False).tolist() == [0]
    assert store.episodes(held_out=True).tolist() == [1, 2]
    summary = {
        "episodes": 3,
        "held_out_episodes": 2,
        "chunks": 12,
        "held_out_chunks": 8,
        "terminal_chunks": 2,
        "real_tics": 12 + 1 + 12 + 16 + 1,
    }
    assert store.summary() == summary
    assert json.loads((tmp_path / "store" / "summary.json").read_text()) == summary


def test_unknown_health_is_nan(tmp_path: Path) -> None:
    store = build(tmp_path, [Played(1, 2, knows_health=False), Played(2, 1)])
    assert np.isnan(store.health).tolist() == [True] * 3 + [False] * 2


@pytest.mark.parametrize("dtype", [np.uint8, np.float16])
@pytest.mark.parametrize("rows", [0, 1, 9, 10])
def test_an_array_is_cut_in_place(tmp_path: Path, dtype: type, rows: int) -> None:
    whole = np.arange(10 * 3 * 2).reshape(10, 3, 2).astype(dtype)
    np.save(tmp_path / "a.npy", whole)
    _shorten(tmp_path / "a.npy", rows)
    assert np.array_equal(np.load(tmp_path / "a.npy"), whole[:rows])
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r") if rows else whole[:0]
    assert np.array_equal(mapped, whole[:rows])


def test_an_interrupted_build_leaves_no_store(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Played]:
        yield Played(1, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_store(interrupted(), tmp_path, odd, 100)
    with pytest.raises(DatasetError, match="holds no training store"):
        open_store(tmp_path)
    episodes = [Played(2, 2)]
    assert same(build(tmp_path, episodes), open_store(tmp_path))  # what is left is no obstacle


def test_more_chunks_than_expected(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="more than the expected 5 chunks"):
        build_store([Played(1, 3), Played(2, 1)], tmp_path, odd, 5)
    with pytest.raises(DatasetError, match="table.npz is missing"):
        open_store(tmp_path)


def test_no_episode_at_all(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no episodes"):
        build_store([], tmp_path, odd, 5)


def test_latents_come_later(tmp_path: Path) -> None:
    store = build(tmp_path, [Played(1, 2)])
    with pytest.raises(DatasetError, match=r"latents.npy is missing: train the VAE"):
        store.latents()
    latents = np.ones((3, 16, 1, 1, 1), np.float16)
    np.save(store.latents_path, latents)
    assert np.array_equal(store.latents(), latents)
    build(tmp_path, [Played(1, 1), Played(3, 0)])  # as many chunks, of other frames
    with pytest.raises(DatasetError, match=r"latents.npy is missing: train the VAE"):
        store.latents()


@pytest.mark.parametrize("name", ["table.npz", "frames.npy"])
def test_a_damaged_store_is_told(tmp_path: Path, name: str) -> None:
    build(tmp_path, [Played(1, 2)])
    whole = (tmp_path / name).read_bytes()
    for damaged in (b"", b"no array", whole[: len(whole) // 2]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"is damaged \(.*\): delete it, and the data"):
            open_store(tmp_path)


def test_a_store_of_two_builds_is_told(tmp_path: Path) -> None:
    build(tmp_path / "other", [Played(1, 4)])
    build(tmp_path / "store", [Played(1, 2)])
    (tmp_path / "other" / "table.npz").replace(tmp_path / "store" / "table.npz")
    with pytest.raises(DatasetError, match="chunks, .* in table.npz"):
        open_store(tmp_path / "store")


def test_damaged_latents_are_told(tmp_path: Path) -> None:
    store = build(tmp_path, [Played(1, 2)])
    latents = np.zeros((len(store.action), 16, 1, 8, 8), np.float16)
    np.save(store.latents_path, latents)
    assert store.latents().shape == latents.shape
    whole = store.latents_path.read_bytes()
    for damaged in (b"", whole[:-7]):
        store.latents_path.write_bytes(damaged)
        with pytest.raises(DatasetError, match="the chunks are encoded again"):
            store.latents()
    np.save(store.latents_path, latents[:-1])
    with pytest.raises(DatasetError, match="chunks of"):
        store.latents()
