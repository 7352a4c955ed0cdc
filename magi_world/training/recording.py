"""Write episodes as a Minari dataset that appears under its name only when it is complete."""

import contextlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from magi_world.errors import DatasetError
from magi_world.training.episodes import PLAYER_REWARDS, EpisodeData, import_minari

_VERSION = re.compile(r"-v\d+$")
_FLUSH_BYTES = 256 * 2**20
_DISK_MARGIN = 1.5  # reset chunks, the last episode, HDF5 blocks that are not full


def disk_needed(chunks: int, chunk_frames: int, frame_shape: tuple[int, int, int]) -> int:
    """Bytes that so many chunks take on disk, an upper estimate."""
    return int(chunks * chunk_frames * int(np.prod(frame_shape)) * _DISK_MARGIN)


def dataset_folder(root: Path, dataset_id: str) -> Path:
    """Folder of a dataset that does not exist yet.

    Raises:
        DatasetError: it does, or the id is none that Minari takes.
        MissingPackage: Minari is absent.
    """
    import_minari("collecting data")
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        # Minari's own rule lets an id without a version through and then stumbles over it.
        if not _VERSION.search(dataset_id):
            raise ValueError("no version, such as -v0, at its end")
        parse_dataset_id(dataset_id)
    except ValueError as error:
        raise DatasetError(
            f"the dataset id {dataset_id!r} is not of the form (folder/)name-v0: {error}"
        ) from None
    folder = root / dataset_id
    if folder.exists():
        raise DatasetError(f"the dataset {folder} exists already: remove it or choose another name")
    return folder


@contextlib.contextmanager
def recording(
    root: Path, dataset_id: str, *, shape: Sequence[int], num_actions: int, description: str
) -> Iterator["Recorder"]:
    """Give a recorder; what it was given becomes `root/dataset_id` when the block ends well.

    Until then the data lies in a hidden folder on the same disk, which goes away if the block
    raises. `shape` is that of one chunk of frames.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".collecting-", dir=root) as folder:
        recorder = Recorder(Path(folder), dataset_id, shape, num_actions, description)
        yield recorder
        recorder.finish()
        _publish(Path(folder), root, dataset_id)


class Recorder:
    """Hands episodes to Minari in portions, so that memory holds one portion only."""

    def __init__(
        self,
        folder: Path,
        dataset_id: str,
        shape: Sequence[int],
        num_actions: int,
        description: str,
    ) -> None:
        self._minari = import_minari("collecting data")
        self._folder = folder
        self._dataset_id = dataset_id
        self._shape = list(shape)
        self._num_actions = num_actions
        self._description = description
        self._dataset: Any = None
        self._waiting: list[Any] = []
        self._bytes = 0
        self._metadata: dict[str, Any] = {}

    def add(self, episode: EpisodeData) -> None:
        """Take in one episode."""
        self._waiting.append(self._buffer(episode))
        self._bytes += episode.frames.nbytes
        if self._bytes >= _FLUSH_BYTES:
            self._flush()

    def describe(self, metadata: Mapping[str, Any]) -> None:
        """Add plain values to the dataset's metadata."""
        self._metadata.update(metadata)

    def finish(self) -> None:
        """Write what is still waiting, and the metadata."""
        self._flush()
        self._dataset.storage.update_metadata(self._metadata)

    def _flush(self) -> None:
        if self._waiting and self._dataset is None:
            self._dataset = self._create()
        elif self._waiting:
            self._dataset.update_dataset_from_buffer(self._waiting)
        self._waiting, self._bytes = [], 0

    def _create(self) -> Any:
        from minari.serialization import deserialize_space

        # Minari writes spaces as JSON; made from that JSON they need no Gymnasium here.
        low = np.zeros(self._shape, np.uint8)
        frames = {"type": "Box", "dtype": "uint8", "shape": self._shape}
        limits = {"low": low.tolist(), "high": (low + 255).tolist()}
        actions = {"type": "Discrete", "dtype": "int64", "start": 0, "n": self._num_actions}
        with _minari_root(self._folder), warnings.catch_warnings():
            # It reminds of authors, a permanent link and an environment; the metadata says what
            # this data is.
            warnings.filterwarnings("ignore", message=".*(is set to None|env_spec is None)")
            return self._minari.create_dataset_from_buffers(
                self._dataset_id,
                self._waiting,
                observation_space=deserialize_space(frames | limits),
                action_space=deserialize_space(actions),
                algorithm_name="a mixture of behaviours, named in each episode's options",
                description=self._description,
                data_format="hdf5",
                jpeg_encoding=False,
            )

    def _buffer(self, episode: EpisodeData) -> Any:
        last = np.arange(len(episode.actions)) == len(episode.actions) - 1
        infos: dict[str, Any] = {"valid_frames": episode.valid_frames}
        if episode.health is not None:
            infos["health"] = episode.health
        rewards = episode.rewards
        if rewards.ndim == 2:  # Minari's own column has one number a step: the first player's
            infos[PLAYER_REWARDS] = np.concatenate([np.zeros_like(rewards[:1]), rewards])
            rewards = rewards[:, 0]
        return self._minari.data_collector.EpisodeBuffer(
            seed=episode.seed,
            options={"behaviour": episode.behaviour},
            observations=episode.frames,
            actions=episode.actions,
            rewards=rewards,
            terminations=last & episode.terminated,
            truncations=last & episode.truncated,
            infos=infos,
        )


@contextlib.contextmanager
def _minari_root(root: Path) -> Iterator[None]:
    """Point Minari at `root` for a moment: it reads the place from the environment only."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MINARI_DATASETS_PATH"]
        else:
            os.environ["MINARI_DATASETS_PATH"] = before


def _publish(scratch: Path, root: Path, dataset_id: str) -> None:
    """Move the finished dataset to its name, with the files by which Minari knows its folders."""
    for folder in reversed(Path(dataset_id).parents):
        (root / folder).mkdir(exist_ok=True)
        for file in (scratch / folder).glob("*.json"):
            if not (root / folder / file.name).exists():
                file.rename(root / folder / file.name)
    (scratch / dataset_id).rename(root / dataset_id)
