import io
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import numpy.typing as npt
import pytest
from rich.console import Console

from magi_world.envs import GameChunk
from magi_world.errors import DatasetError, MissingPackage
from magi_world.training import recording
from magi_world.training.collect import FIRST_SEED, Behaviour, Collected, collect, is_held_out
from magi_world.training.recording import disk_needed

NAME = "toy-game/first-v0"


class Game:
    """Episodes of 3 + seed % 3 chunks; the frames say seed, chunk and action."""

    name = "toy"
    prompts = ["rest", "left", "right"]
    chunk_frames = 4
    frame_shape = (8, 8, 3)
    fps = 35
    made: list["Game"] = []

    def __init__(self) -> None:
        self.closed = False
        Game.made.append(self)

    def reset(self, seed: int) -> GameChunk:
        self.seed, self.count = seed, 0
        return self._chunk(0, 4, False, False)

    def step(self, action: int) -> GameChunk:
        self.count += 1
        over = self.count == 3 + self.seed % 3
        dies = over and self.seed % 2 == 0
        return self._chunk(action, 1 if dies else 4, dies, over and not dies)

    def close(self) -> None:
        self.closed = True

    def _chunk(self, action: int, valid: int, terminated: bool, truncated: bool) -> GameChunk:
        frames = np.zeros((4, 8, 8, 3), np.uint8)
        frames[...] = [self.seed % 256, self.count, action]
        health = 0.0 if terminated else 100.0 - self.count
        return GameChunk(frames, valid, float(valid), terminated, truncated, health)


class Always:
    """Plays one action and writes down what it was told."""

    def __init__(self, action: int) -> None:
        self.action = action
        self.told: list[Any] = []

    def reset(self, n: int, seed: int | None = None) -> None:
        self.told.append((n, seed))

    def act(self, observations: Any) -> npt.NDArray[np.int64]:
        self.told.append(observations.shape)
        return np.array([self.action])


def mixture() -> list[Behaviour]:
    return [
        Behaviour("one", 1, lambda generator: Always(1)),
        Behaviour("two", 2, lambda generator: Always(2)),
    ]


def run(root: Path, chunks: int = 60, **keywords: Any) -> Collected:
    keywords = {"behaviours": mixture(), "dataset_id": NAME, **keywords}
    return collect(Game, root=root, chunks=chunks, console=Console(file=io.StringIO()), **keywords)


def load(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    return minari.load_dataset(NAME)


def test_minari_reads_what_was_played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(tmp_path)
    dataset = load(tmp_path, monkeypatch)
    assert list(minari.list_local_datasets()) == [NAME]
    assert (dataset.total_episodes, dataset.total_steps) == (result.episodes, result.chunks)
    assert dataset.action_space.n == 3 and dataset.action_space.start == 0
    assert dataset.observation_space.shape == (4, 8, 8, 3)
    assert dataset.observation_space.dtype == np.uint8
    about = list(dataset.storage.get_episode_metadata(range(result.episodes)))
    tics = 0
    for i, episode in enumerate(dataset.iterate_episodes()):
        seed, steps = 1_000_000 + i, 3 + (1_000_000 + i) % 3
        action = {"one": 1, "two": 2}[about[i]["options"]["behaviour"]]
        assert about[i]["seed"] == seed
        assert episode.observations.shape == (steps + 1, 4, 8, 8, 3)
        assert (episode.observations[..., 0] == seed % 256).all()
        assert (episode.observations[:, 0, 0, 0, 1] == np.arange(steps + 1)).all()
        assert (episode.observations[1:, ..., 2] == action).all()
        assert episode.actions.dtype == np.int64 and (episode.actions == action).all()
        dies = seed % 2 == 0
        assert episode.terminations.tolist() == [False] * (steps - 1) + [dies]
        assert episode.truncations.tolist() == [False] * (steps - 1) + [not dies]
        valid = episode.infos["valid_frames"]
        assert valid.tolist() == [4] * steps + [1 if dies else 4]
        assert episode.rewards.tolist() == valid[1:].tolist()
        assert episode.infos["health"].tolist()[:2] == [100.0, 99.0]
        tics += int(valid.sum())
    metadata = dataset.storage.metadata
    assert metadata["real_tics"] == result.real_tics == tics
    assert (metadata["game"], metadata["prompts"]) == ("toy", Game.prompts)
    assert (metadata["chunk_frames"], metadata["fps"]) == (4, 35)
    assert metadata["by_behaviour"] == result.by_behaviour


def test_shares_count_chunks(tmp_path: Path) -> None:
    result = run(tmp_path, chunks=300)
    assert 300 <= result.chunks < 306
    assert abs(result.by_behaviour["one"]["chunks"] - result.chunks / 3) < 6
    assert sum(row["episodes"] for row in result.by_behaviour.values()) == result.episodes


def test_a_policy_starts_anew_for_each_episode(tmp_path: Path) -> None:
    drawn, policies = [], []

    def make(generator: np.random.Generator) -> Always:
        drawn.append(int(generator.integers(2**31)))
        policies.append(Always(0))
        return policies[-1]

    result = run(tmp_path, chunks=12, behaviours=[Behaviour("b", 1, make)], first_episode=5)
    seeds = [1_000_005 + i for i in range(result.episodes)]
    assert drawn == [int(np.random.default_rng(seed).integers(2**31)) for seed in seeds]
    assert [policy.told[0] for policy in policies] == [(1, seed) for seed in seeds]
    assert all(shape == (1, 4, 8, 8, 3) for policy in policies for shape in policy.told[1:])


def test_portions_do_not_change_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents: list[dict[str, Any]] = []
    for portion in (2**28, 10_000):
        monkeypatch.setattr(recording, "_FLUSH_BYTES", portion)
        root = tmp_path / str(portion)
        run(root)
        file = h5py.File(root / NAME / "data" / "main_data.hdf5")
        contents.append({})
        file.visititems(
            lambda name, item: (
                contents[-1].update({name: item[()].tolist()})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
        file.close()
    assert contents[0] == contents[1] and len(contents[0]) > 20


def test_an_interrupted_collection_leaves_nothing(tmp_path: Path) -> None:
    class Interrupted(Always):
        def act(self, observations: Any) -> npt.NDArray[np.int64]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            tmp_path,
            behaviours=[
                Behaviour("fine", 1, lambda generator: Always(0)),
                Behaviour("stops", 1, lambda generator: Interrupted(0)),
            ],
        )
    assert list(tmp_path.iterdir()) == []
    assert Game.made[-1].closed


def test_the_environment_variable_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", "/elsewhere")
    run(tmp_path / "a")
    assert os.environ["MINARI_DATASETS_PATH"] == "/elsewhere"
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    run(tmp_path / "b")
    assert "MINARI_DATASETS_PATH" not in os.environ


def test_a_second_dataset_goes_beside_the_first(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, dataset_id="toy-game/second-v0", first_episode=100)
    folders = {path.name for path in (tmp_path / "toy-game").iterdir() if path.is_dir()}
    assert folders == {"first-v0", "second-v0"}
    with pytest.raises(DatasetError, match="exists already"):
        run(tmp_path)


def test_disk_is_asked_for_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = disk_needed(60, 4, (8, 8, 3))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    words = io.StringIO()
    with pytest.raises(DatasetError, match="GB of disk needed under .* GB free"):
        collect(
            Game,
            mixture(),
            dataset_id=NAME,
            root=tmp_path / "new",
            chunks=60,
            console=Console(file=words, width=400),
        )
    assert words.getvalue() == "" and list(tmp_path.iterdir()) == []
    assert Game.made[-1].closed


def test_the_estimate_of_disk_is_enough(tmp_path: Path) -> None:
    class Large(Game):
        frame_shape = (64, 64, 3)

        def _chunk(self, action: int, valid: int, terminated: bool, truncated: bool) -> GameChunk:
            chunk = super()._chunk(action, valid, terminated, truncated)
            frames = np.tile(chunk.frames, (1, 8, 8, 1))
            return GameChunk(frames, valid, chunk.reward, terminated, truncated, chunk.health)

        def step(self, action: int) -> GameChunk:
            self.seed = self.seed * 60 + 100  # some episodes of a hundred chunks
            self.count += 1
            return self._chunk(action, 4, self.count == 100, False)

        def reset(self, seed: int) -> GameChunk:
            self.seed, self.count = seed % 7, 0
            return self._chunk(0, 4, False, False)

    collect(
        Large,
        mixture(),
        dataset_id="large-v0",
        root=tmp_path,
        chunks=300,
        console=Console(file=io.StringIO()),
    )
    size = (tmp_path / "large-v0" / "data" / "main_data.hdf5").stat().st_size
    assert size < disk_needed(300, 4, (64, 64, 3))


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"chunks": 0}, "got 0"),
        ({"first_episode": -1}, "got -1"),
        ({"dataset_id": "no-version"}, "'no-version'"),
        ({"dataset_id": "../up-v0"}, "'../up-v0'"),
        ({"dataset_id": "/absolute/up-v0"}, "'/absolute/up-v0'"),
        ({"dataset_id": "x/too-short-v0"}, "'x/too-short-v0'"),
        ({"behaviours": []}, r"got \[\]"),
        ({"behaviours": mixture() * 2}, "names of their own"),
        ({"behaviours": [Behaviour("none", 0, lambda g: Always(0))]}, "'none'.*got 0"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        run(tmp_path / "new", **keywords)
    assert list(tmp_path.iterdir()) == []


def test_a_game_that_ends_at_once_is_refused(tmp_path: Path) -> None:
    class Short(Game):
        def reset(self, seed: int) -> GameChunk:
            super().reset(seed)
            return self._chunk(0, 1, True, False)

    with pytest.raises(DatasetError, match="reset chunk of seed 1000000"):
        collect(Short, mixture(), dataset_id=NAME, root=tmp_path, chunks=5)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"frames": np.zeros((4, 8, 9, 3), np.uint8)},
            r"step\(2\) gives uint8 \[4, 8, 9, 3\], the",
        ),
        ({"frames": np.zeros((4, 8, 8, 3), np.float32)}, r"step\(2\) gives float32"),
        ({"frames": np.zeros((3, 8, 8, 3), np.uint8)}, r"\[3, 8, 8, 3\]"),
        ({"reward": float("nan")}, r"the reward of step\(2\) is nan"),
        ({}, r"toy fails in step\(2\): RuntimeError: no server \(.*test_collect.py, line \d+\)"),
    ],
)
def test_a_game_that_breaks_its_word_is_named(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    class Odd(Game):
        def step(self, action: int) -> GameChunk:
            chunk = super().step(action)
            if self.count < 3 or action != 2:
                return chunk
            if not change:
                raise RuntimeError("no server")
            return replace(chunk, **change)

    with pytest.raises(DatasetError, match=words):
        collect(Odd, mixture(), dataset_id=NAME, root=tmp_path, chunks=60)
    assert list(tmp_path.iterdir()) == []


def test_without_minari_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(MissingPackage, match=r"pip install 'magi-world\[data\]'"):
        run(tmp_path)


def test_every_twentieth_episode_is_held_out() -> None:
    held_out = [i for i in range(100) if is_held_out(FIRST_SEED + i)]
    assert held_out == [19, 39, 59, 79, 99]


def test_metadata_is_plain_json(tmp_path: Path) -> None:
    run(tmp_path)
    metadata = json.loads((tmp_path / NAME / "data" / "metadata.json").read_text())
    assert metadata["prompts"] == Game.prompts
