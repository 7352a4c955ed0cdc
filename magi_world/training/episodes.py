"""Read the episodes of a Minari dataset as chunks: what `collect` wrote, or anybody's frames.

Two forms of observations are understood, alone or as the one picture-like entry of a Dict:

- chunks, uint8 `[F, H, W, 3]` with F a multiple of four: one step is one chunk;
- single frames, uint8 `[H, W, 3]`: the first one, repeated, is the first chunk; after it four steps
  make a chunk, and the action must be the same in all four, unless a `Reading` says otherwise.

Actions are Discrete; where the space starts above 0 they are counted from 0.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.errors import DatasetError, missing_package
from magi_world.training.reading import Reading, group

FIRST_SEED = 1_000_000
"""Data is played with the game's seeds from here on; evaluation keeps to smaller ones."""

PLAYER_REWARDS = "player_rewards"
"""The info with every player's rewards, `[n + 1, players]`; row 0, of the first chunk, is zeros."""

_HELD_OUT_EVERY = 20
_FRAMES = 4


def is_held_out(seed: int) -> bool:
    """Whether the episode of this seed belongs to the held-out part (every twentieth does)."""
    return seed % _HELD_OUT_EVERY == _HELD_OUT_EVERY - 1


@dataclass(frozen=True)
class EpisodeData:
    """One episode of n steps.

    `frames` uint8 `[n + 1, F, H, W, 3]`, `actions` int64 `[n]`, `rewards` float32 `[n]` or, in a
    game of several players, `[n, players]`, `valid_frames` int64 `[n + 1]` (how many frames of the
    chunk are real), `health` float32 `[n + 1]` or None if the dataset does not know it. `behaviour`
    says who played ("" if unknown).
    `seed` decides the split (`is_held_out`); where the dataset has no seeds the episode's number
    stands for it, counted from `FIRST_SEED`.
    """

    seed: int
    behaviour: str
    frames: npt.NDArray[np.uint8]
    actions: npt.NDArray[np.int64]
    rewards: npt.NDArray[np.float32]
    valid_frames: npt.NDArray[np.int64]
    health: npt.NDArray[np.float32] | None
    terminated: bool
    truncated: bool


def import_minari(purpose: str) -> Any:
    """Import Minari with its storage, or raise the error that says how to install both."""
    try:
        import h5py  # noqa: F401  (Minari's storage needs it, and asks for it late)
        import minari
    except ImportError as error:
        raise missing_package("minari[hdf5]", "data", purpose) from error
    return minari


def open_dataset(path_or_id: Path | str, *, root: Path | str | None = None) -> Any:
    """Open a dataset by its folder, or by its Minari id under `root` (default: Minari's own).

    Raises `DatasetError` if there is none or its files are damaged, `MissingPackage` without
    Minari. Nothing is downloaded.
    """
    minari = import_minari("reading data")
    folder = Path(path_or_id).expanduser()
    if root is not None:
        folder = Path(root).expanduser() / path_or_id
    elif not folder.exists():
        folder = Path(minari.storage.get_dataset_path(str(path_or_id)))
    data = folder if folder.name == "data" else folder / "data"
    if not (data / "metadata.json").is_file():
        raise DatasetError(f"no Minari dataset at {folder}: it has no data/metadata.json")
    try:
        return minari.MinariDataset(data)
    except (AssertionError, KeyError, OSError, ValueError) as error:  # as Minari reports them
        raise _damaged(data, error) from None


def _damaged(what: Path | str, error: Exception) -> DatasetError:
    return DatasetError(f"{what} is damaged: {error or 'its metadata lacks something'}")


@dataclass(frozen=True)
class Facts:
    """What data is, as far as it can be told before it is read.

    `size` is the height and width of its frames; `chunk_frames` the frames of a chunk, None for
    single frames; `actions` how many there are; `prompts` what they are called, None if unknown;
    `chunks` the most that it can give, reset chunks included.
    """

    size: tuple[int, int]
    chunk_frames: int | None
    actions: int
    prompts: list[str] | None
    chunks: int


def dataset_facts(
    path_or_id: Path | str, *, root: Path | str | None = None, reading: Reading | None = None
) -> Facts:
    """Look at a dataset without reading its episodes; raises as `read_episodes` does at once."""
    dataset = open_dataset(path_or_id, root=root)
    layout = _Layout.of(dataset)
    shape = layout.shape
    prompts = dataset.storage.metadata.get("prompts")
    steps, episodes = int(dataset.total_steps), int(dataset.total_episodes)
    if layout.single:  # every episode ends in a group that may be filled
        steps = steps // (reading or Reading()).steps_per_chunk + episodes
    return Facts(
        size=(shape[-3], shape[-2]),
        chunk_frames=None if layout.single else shape[0],
        actions=int(dataset.action_space.n),
        prompts=None if prompts is None else [str(prompt) for prompt in prompts],
        chunks=steps + episodes,
    )


def read_episodes(
    path_or_id: Path | str,
    *,
    root: Path | str | None = None,
    held_out: bool | None = None,
    reading: Reading | None = None,
    chunk_frames: int = _FRAMES,
) -> Iterator[EpisodeData]:
    """Go through the episodes in their order, one in memory at a time.

    `held_out=True` gives the held-out part only, `False` the rest; what is left out is not read.
    Single frames become chunks of `chunk_frames` as `reading` says. Raises `DatasetError` at once
    if the spaces cannot be used, and on the way for an episode whose frames cannot be grouped.
    """
    dataset = open_dataset(path_or_id, root=root)
    layout = _Layout.of(dataset)
    return _episodes(dataset, layout, held_out, (reading or Reading(), chunk_frames))


def _episodes(
    dataset: Any, layout: "_Layout", held_out: bool | None, grouping: tuple[Reading, int]
) -> Iterator[EpisodeData]:
    numbers = [int(number) for number in dataset.episode_indices]
    try:
        metadata = list(dataset.storage.get_episode_metadata(numbers))
    except (KeyError, OSError) as error:
        raise _damaged(dataset.id, error) from None
    seeds = [
        int(about.get("seed", FIRST_SEED + n)) for n, about in zip(numbers, metadata, strict=True)
    ]
    if not any(map(is_held_out, seeds)):  # other people's seeds: drawn, or the same for all
        seeds = [FIRST_SEED + number for number in numbers]
    for number, seed, about in zip(numbers, seeds, metadata, strict=True):
        if held_out is not None and is_held_out(seed) != held_out:
            continue
        try:
            episode = next(iter(dataset.iterate_episodes([number])))
        except KeyError as error:
            raise DatasetError(
                f"{dataset.id}, episode {number}: actions, rewards or pictures are missing: {error}"
            ) from None
        except OSError as error:
            raise _damaged(dataset.id, error) from None
        behaviour = str(about.get("options", {}).get("behaviour", ""))
        yield layout.read(episode, seed, behaviour, grouping)


@dataclass(frozen=True)
class _Layout:
    """Where the frames of a dataset are and how its actions are numbered."""

    name: str
    key: str | None  # the entry of a Dict observation that holds the frames
    shape: tuple[int, ...]  # of one observation's frames
    first_action: int
    num_actions: int

    @property
    def single(self) -> bool:
        """Whether a step has one frame, to be grouped."""
        return len(self.shape) == 3

    @classmethod
    def of(cls, dataset: Any) -> "_Layout":
        name, actions = str(dataset.id), dataset.action_space
        if not (hasattr(actions, "n") and hasattr(actions, "start")):
            raise DatasetError(
                f"{name}: actions must be Discrete, they are {actions}: record again with one "
                "number for each thing that can be done"
            )
        space = dataset.observation_space
        entries = dict(space.spaces) if isinstance(getattr(space, "spaces", None), dict) else None
        if entries is None:
            key = None
        else:
            keys = [one for one, entry in entries.items() if _holds_frames(entry)]
            if len(keys) != 1:
                raise DatasetError(
                    f"{name}: a Dict observation needs exactly one entry of frames (uint8 "
                    f"[F, H, W, 3] or [H, W, 3]), it has {keys} among {sorted(entries)}"
                )
            key, space = keys[0], entries[keys[0]]
        if not _holds_frames(space):
            raise DatasetError(
                f"{name}: observations must be uint8 [F, H, W, 3] with F a multiple of {_FRAMES}, "
                f"or uint8 [H, W, 3]; they are {getattr(space, 'dtype', None)} "
                f"{list(getattr(space, 'shape', None) or [])}"
            )
        shape = tuple(map(int, space.shape))
        return cls(name, key, shape, int(actions.start), int(actions.n))

    def read(
        self, episode: Any, seed: int, behaviour: str, grouping: tuple[Reading, int]
    ) -> EpisodeData:
        observations = episode.observations
        frames = np.asarray(observations if self.key is None else observations[self.key])
        taken = np.asarray(episode.actions)
        actions = taken.astype(np.int64) - self.first_action
        rewards = np.asarray(episode.rewards, np.float32)
        where = f"{self.name}, episode {episode.id}"
        if len(frames) != len(actions) + 1 or not len(actions):
            raise DatasetError(
                f"{where}: {len(actions)} actions need {len(actions) + 1} observations and at "
                f"least one action, it has {len(frames)}"
            )
        if frames.dtype != np.uint8 or frames.shape[1:] != self.shape:
            raise DatasetError(
                f"{where}: frames of different sizes or kinds, {frames.dtype} "
                f"{list(frames.shape[1:])}, the dataset has uint8 {list(self.shape)}"
            )
        if (
            taken.dtype.kind not in "iu"
            or not ((0 <= actions) & (actions < self.num_actions)).all()
        ):
            raise DatasetError(
                f"{where}: actions from {taken.min()} to {taken.max()}, which are not all of the "
                f"{self.num_actions} whole numbers from {self.first_action} on"
            )
        if not np.isfinite(rewards).all():
            raise DatasetError(f"{where}: a reward is NaN or infinite")
        terminated = bool(np.asarray(episode.terminations)[-1])
        health = None
        if self.single:
            frames, actions, rewards, valid = group(
                frames, actions, rewards, terminated=terminated, reading=grouping[0],
                chunk_frames=grouping[1], source=where,
            )  # fmt: skip
        else:
            infos = episode.infos or {}
            full = np.full(len(frames), frames.shape[1], np.int64)
            valid = self._info(infos, "valid_frames", full, int(episode.id))
            if "health" in infos:
                blank = np.zeros(len(frames), np.float32)
                health = self._info(infos, "health", blank, int(episode.id))
            if PLAYER_REWARDS in infos:
                players = np.asarray(infos[PLAYER_REWARDS]).shape[-1]
                blank = np.zeros((len(frames), players), np.float32)
                rewards = self._info(infos, PLAYER_REWARDS, blank, int(episode.id))[1:]
        return EpisodeData(
            seed=seed,
            behaviour=behaviour,
            frames=frames,
            actions=actions,
            rewards=rewards,
            valid_frames=valid,
            health=health,
            terminated=terminated,
            truncated=bool(np.asarray(episode.truncations)[-1]),
        )

    def _info(self, infos: Any, key: str, default: Any, episode: int) -> Any:
        values = np.asarray(infos[key], default.dtype) if key in infos else default
        if values.shape != default.shape:
            raise DatasetError(
                f"{self.name}, episode {episode}: the info {key!r} has shape "
                f"{list(values.shape)} instead of {list(default.shape)}"
            )
        return values


def _holds_frames(space: Any) -> bool:
    shape: tuple[int, ...] = tuple(getattr(space, "shape", None) or ())
    if getattr(space, "dtype", None) != np.uint8 or len(shape) not in (3, 4) or shape[-1] != 3:
        return False
    return len(shape) == 3 or (shape[0] > 0 and shape[0] % _FRAMES == 0)
