import io
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from rich.console import Console

from magi_world.errors import DatasetError
from magi_world.training.collect import Behaviour, collect, is_held_out
from magi_world.training.episodes import EpisodeData, dataset_facts, open_dataset, read_episodes

PICTURE = spaces.Box(0, 255, (8, 8, 3), np.uint8)
CHUNK = spaces.Box(0, 255, (4, 8, 8, 3), np.uint8)


def frames(count: int, *shape: int) -> Any:
    """Frames or chunks that can be told apart: number i is filled with i."""
    numbers = np.arange(count, dtype=np.uint8).reshape(-1, *[1] * len(shape))
    return np.broadcast_to(numbers, (count, *shape)).copy()


def write(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    observations: Any,
    actions: list[int],
    *,
    observation_space: gymnasium.Space[Any] = PICTURE,
    action_space: gymnasium.Space[Any] | None = None,
    terminated: bool = False,
    **buffer: Any,
) -> str:
    """A dataset of one episode, as somebody else would record it."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    n = len(actions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "other/game-v0",
            [
                EpisodeBuffer(
                    observations=observations,
                    actions=np.array(actions),
                    rewards=np.arange(1.0, n + 1),
                    terminations=np.arange(n) == (n - 1 if terminated else n),
                    truncations=np.arange(n) == (n if terminated else n - 1),
                    **buffer,
                )
            ],
            observation_space=observation_space,
            action_space=action_space or spaces.Discrete(3),
            data_format="hdf5",
            jpeg_encoding=False,
        )
    return "other/game-v0"


def only(name: str | Path) -> EpisodeData:
    (episode,) = read_episodes(name)
    return episode


class Chunk:
    terminated, truncated, valid_frames, reward, health = False, False, 4, 4.0, 100.0
    frames = frames(4, 8, 8, 3)


class LastChunk(Chunk):
    terminated, valid_frames, reward, health = True, 1, 1.0, 0.0


class Game:
    name, prompts, chunk_frames, frame_shape, fps = "toy", ["rest", "go"], 4, (8, 8, 3), 35

    def reset(self, seed: int) -> Chunk:
        self.left = 3
        return Chunk()

    def step(self, action: int) -> Chunk:
        self.left -= 1
        return Chunk() if self.left else LastChunk()

    def close(self) -> None:
        pass


class Go:
    def reset(self, n: int, seed: int | None = None) -> None:
        pass

    def act(self, observations: Any) -> Any:
        return np.ones(1, np.int64)


def collected(root: Path) -> Path:
    console = Console(file=io.StringIO())
    behaviours = [Behaviour("going", 1, lambda generator: Go())]
    name = "toy/round-v0"
    result = collect(Game, behaviours, dataset_id=name, root=root, chunks=120, console=console)
    return result.path


def test_a_collection_comes_back(tmp_path: Path) -> None:
    folder = collected(tmp_path)
    episodes = list(read_episodes(folder))
    assert [episode.seed for episode in episodes] == [1_000_000 + i for i in range(40)]
    for episode in episodes:
        assert episode.behaviour == "going"
        assert episode.frames.shape == (4, 4, 8, 8, 3) and episode.frames.dtype == np.uint8
        np.testing.assert_array_equal(episode.frames[2], Chunk.frames)
        assert episode.actions.tolist() == [1, 1, 1] and episode.actions.dtype == np.int64
        assert episode.rewards.tolist() == [4, 4, 1] and episode.rewards.dtype == np.float32
        assert episode.valid_frames.tolist() == [4, 4, 4, 1]
        assert episode.health is not None and episode.health.tolist() == [100, 100, 100, 0]
        assert (episode.terminated, episode.truncated) == (True, False)
    assert dataset_facts(folder).chunks == 160


def test_a_dataset_has_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = collected(tmp_path)
    ways: list[dict[str, Any]] = [
        {"path_or_id": folder},
        {"path_or_id": str(folder / "data")},
        {"path_or_id": "toy/round-v0", "root": tmp_path},
    ]
    assert [open_dataset(**way).id for way in ways] == ["toy/round-v0"] * 3
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert open_dataset("toy/round-v0").total_episodes == 40
    for wrong in (tmp_path, "toy/round-v1"):
        with pytest.raises(DatasetError, match="no Minari dataset at"):
            open_dataset(wrong)


def test_the_split_is_by_seed(tmp_path: Path) -> None:
    folder = collected(tmp_path)
    held_out = [episode.seed for episode in read_episodes(folder, held_out=True)]
    rest = [episode.seed for episode in read_episodes(folder, held_out=False)]
    assert held_out == [1_000_019, 1_000_039]
    assert len(rest) == 38 and not any(map(is_held_out, rest))


def test_single_frames_are_grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actions = [3, 3, 3, 3, 1, 1, 1, 1]
    name = write(
        tmp_path, monkeypatch, frames(9, 8, 8, 3), actions, action_space=spaces.Discrete(3, start=1)
    )
    episode = only(name)
    assert episode.frames[:, :, 0, 0, 0].tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert episode.actions.tolist() == [2, 0]
    assert episode.rewards.tolist() == [10, 26]
    assert episode.valid_frames.tolist() == [4, 4, 4]
    assert episode.health is None and episode.behaviour == ""
    assert (episode.terminated, episode.truncated) == (False, True)
    assert episode.seed == 1_000_000


def test_an_end_within_a_chunk_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(tmp_path, monkeypatch, frames(7, 8, 8, 3), [0] * 4 + [2] * 2, terminated=True)
    episode = only(name)
    assert episode.frames[-1, :, 0, 0, 0].tolist() == [5, 6, 6, 6]
    assert episode.valid_frames.tolist() == [4, 4, 2]
    assert episode.actions.tolist() == [0, 2] and episode.rewards.tolist() == [10, 11]


def test_a_cut_within_a_chunk_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    episode = only(write(tmp_path, monkeypatch, frames(7, 8, 8, 3), [0] * 4 + [2, 1]))
    assert episode.frames.shape[0] == 2 and episode.actions.tolist() == [0]
    assert episode.rewards.tolist() == [10]
    assert (episode.terminated, episode.truncated) == (False, True)


def test_chunks_of_others_need_no_infos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = spaces.Dict({"screen": CHUNK, "ammo": spaces.Box(0, 9, (1,), np.float32)})
    observations = {"screen": frames(3, 4, 8, 8, 3), "ammo": np.zeros((3, 1), np.float32)}
    name = write(tmp_path, monkeypatch, observations, [0, 1], observation_space=space, seed=39)
    episode = only(name)
    assert episode.frames[:, 3, 7, 7, 2].tolist() == [0, 1, 2]
    assert episode.valid_frames.tolist() == [4, 4, 4]
    assert episode.seed == 39


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        (
            {"action_space": spaces.Box(0, 3, (), np.int64)},
            "actions must be Discrete, they are Box",
        ),
        (
            {"observation_space": spaces.Box(0, 255, (8, 8), np.uint8)},
            r"they are uint8 \[8, 8\]",
        ),
        (
            {"observation_space": spaces.Box(0, 1, (8, 8, 3), np.float32)},
            r"they are float32 \[8, 8, 3\]",
        ),
        (
            {"observation_space": spaces.Box(0, 255, (6, 8, 8, 3), np.uint8)},
            "multiple of 4",
        ),
        (
            {"observation_space": spaces.Dict({"a": PICTURE, "b": CHUNK})},
            r"exactly one entry of frames .*\['a', 'b'\]",
        ),
    ],
)
def test_spaces_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keywords: dict[str, Any], words: str
) -> None:
    space = keywords.get("observation_space", PICTURE)
    samples = [space.sample() for _ in range(5)]
    observations: Any = (
        np.stack(samples)
        if isinstance(space, spaces.Box)
        else {key: np.stack([sample[key] for sample in samples]) for key in ("a", "b")}
    )
    name = write(tmp_path, monkeypatch, observations, [0] * 4, **keywords)
    with pytest.raises(DatasetError, match=f"^{name}: .*{words}"):
        read_episodes(name)


def test_episodes_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = write(tmp_path / "a", monkeypatch, frames(9, 8, 8, 3), [0, 0, 0, 0, 1, 1, 2, 1])
    with pytest.raises(DatasetError, match=r"episode 0, steps 4 to 7.*\[1, 1, 2, 1\]"):
        only(name)
    write(tmp_path / "b", monkeypatch, frames(3, 8, 8, 3), [0, 0])
    with pytest.raises(DatasetError, match="shorter than one chunk"):
        only(name)
    write(tmp_path / "c", monkeypatch, frames(4, 8, 8, 3), [0] * 4)
    with pytest.raises(DatasetError, match="4 actions need 5 observations"):
        only(name)
    infos = {"valid_frames": np.array([4, 4])}
    write(
        tmp_path / "d", monkeypatch, frames(3, 4, 8, 8, 3), [0, 1],
        observation_space=CHUNK, infos=infos,
    )  # fmt: skip
    with pytest.raises(DatasetError, match=r"'valid_frames' has shape \[2\] instead of \[3\]"):
        only(name)
