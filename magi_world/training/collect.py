"""Play a real game with a mixture of behaviours and keep every chunk as a Minari dataset.

One Minari episode is one episode of the game, one step is one chunk: `observations` uint8
`[n + 1, F, H, W, 3]` begins with the chunk that `reset` gave, `actions` int64 `[n]` are indices of
the game's prompts, the infos `valid_frames` and `health` have `n + 1` rows. The game and the
behaviours are handed in, so nothing here knows which game is played or who plays.

`training/episodes.py` reads such datasets, and other people's.
"""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from magi_world.disk import check_disk, check_folder
from magi_world.errors import DatasetError, MagiWorldError
from magi_world.training.episodes import FIRST_SEED, EpisodeData, is_held_out
from magi_world.training.recording import dataset_folder, disk_needed, recording

__all__ = [
    "FIRST_SEED",
    "Behaviour",
    "Collected",
    "Game",
    "GameChunk",
    "Policy",
    "collect",
    "is_held_out",
    "play_episode",
]


class GameChunk(Protocol):
    """One chunk of a real game.

    `frames` is uint8 `[F, H, W, 3]`; `valid_frames` counts those of them that the game drew, the
    rest repeat the last one; `reward` is what the chunk earned, in a game of several players
    float32 `[players]`; `health` is the player's, NaN where the game knows none.
    """

    @property
    def frames(self) -> npt.NDArray[np.uint8]: ...
    @property
    def valid_frames(self) -> int: ...
    @property
    def reward(self) -> float | npt.NDArray[np.float32]: ...
    @property
    def terminated(self) -> bool: ...
    @property
    def truncated(self) -> bool: ...
    @property
    def health(self) -> float: ...


class Game(Protocol):
    """A real game played in chunks; `reset` gives the first one, which nobody acted on.

    An action is an index into `prompts`; in a game of several players one prompt holds what all of
    them do (`magi_world.players`).
    """

    name: str
    prompts: list[str]
    chunk_frames: int
    frame_shape: tuple[int, int, int]
    fps: int

    def reset(self, seed: int) -> GameChunk: ...
    def step(self, action: int) -> GameChunk: ...
    def close(self) -> None: ...


class Policy(Protocol):
    """Whoever chooses the actions; it is given frames, uint8 `[1, F, H, W, 3]`."""

    def reset(self, n: int, seed: int | None = None) -> None: ...
    def act(self, observations: Any, /) -> npt.NDArray[np.int64]: ...


@dataclass(frozen=True)
class Behaviour:
    """One part of the mixture.

    `share` is its part of all chunks, relative to the others' shares; `make` builds the policy of
    one episode with the episode's own generator.
    """

    name: str
    share: float
    make: Callable[[np.random.Generator], Policy]


@dataclass
class Collected:
    """What a collection gave: `real_tics` counts every picture that the game drew for it."""

    dataset_id: str
    path: Path
    episodes: int = 0
    chunks: int = 0
    real_tics: int = 0
    by_behaviour: dict[str, dict[str, float]] = field(default_factory=dict)


def collect(
    make_game: Callable[[], Game],
    behaviours: Sequence[Behaviour],
    *,
    dataset_id: str,
    root: Path | str,
    chunks: int,
    first_episode: int = 0,
    horizon: int | None = None,
    console: Console | None = None,
) -> Collected:
    """Play until `chunks` chunks are there (the last episode is played to its end) and write them.

    The dataset appears as `root/dataset_id` (so `MINARI_DATASETS_PATH=root` makes Minari find it)
    when it is complete, and not before. Episode i is played with the game's seed
    `FIRST_SEED + first_episode + i`; a second collection for the same training takes a
    `first_episode` beyond the first one's. With a `horizon` episodes are cut after so many chunks,
    where a game is long and one episode would be a large part of the data. The same arguments give
    the same data. Words and the progress bar go to `console`, standard error unless another is
    given.

    Raises:
        DatasetError: the dataset exists already, the disk is too small, the root is no place to
            write in or an argument makes no sense.
        MissingPackage: Minari is absent.
    """
    _check_arguments(behaviours, chunks, first_episode, horizon)
    console = console or Console(stderr=True)
    root = Path(root).expanduser().resolve()
    result = Collected(dataset_id, dataset_folder(root, dataset_id))
    check_folder(result.path.parent, DatasetError)
    game = make_game()
    try:
        needed = disk_needed(chunks, game.chunk_frames, game.frame_shape)
        console.print(check_disk(root, needed, DatasetError), soft_wrap=True)
        with recording(
            root,
            dataset_id,
            shape=[game.chunk_frames, *game.frame_shape],
            num_actions=len(game.prompts),
            description=f"Chunks of {game.name}, collected by magi-world collect.",
        ) as recorder:
            with _progress(console) as progress:
                task = progress.add_task("collecting", total=chunks)
                for episode in _play(game, behaviours, chunks, FIRST_SEED + first_episode, horizon):
                    recorder.add(episode)
                    _count(result, episode)
                    progress.update(task, completed=min(result.chunks, chunks))
            recorder.describe(
                {
                    "game": game.name,
                    "prompts": list(game.prompts),
                    "chunk_frames": game.chunk_frames,
                    "fps": game.fps,
                    "real_tics": result.real_tics,
                    "by_behaviour": result.by_behaviour,
                }
            )
    finally:
        game.close()
    found = f"{result.chunks} chunks in {result.episodes} episodes, {result.real_tics} real tics"
    console.print(f"{found}: {result.path}")
    return result


def play_episode(
    game: Game, behaviour: Behaviour, seed: int, horizon: int | None = None
) -> EpisodeData:
    """Play one episode of the real game to its end, or cut it after `horizon` chunks.

    Raises:
        DatasetError: the episode ends in the reset chunk, before anybody has acted; the game fails,
            or gives a chunk that is not what it says its chunks are.
    """
    policy = behaviour.make(np.random.default_rng(seed))
    policy.reset(1, seed=seed)
    chunks = [_ask(game, game.reset, seed)]
    actions: list[int] = []
    while not (chunks[-1].terminated or chunks[-1].truncated or len(actions) == horizon):
        actions.append(int(policy.act(chunks[-1].frames[None])[0]))
        chunks.append(_ask(game, game.step, actions[-1]))
    if not actions:
        raise DatasetError(f"{game.name} ends within the reset chunk of seed {seed}")
    return EpisodeData(
        seed=seed,
        behaviour=behaviour.name,
        frames=np.stack([chunk.frames for chunk in chunks]),
        actions=np.array(actions, np.int64),
        rewards=np.array([chunk.reward for chunk in chunks[1:]], np.float32),
        valid_frames=np.array([chunk.valid_frames for chunk in chunks], np.int64),
        health=np.array([chunk.health for chunk in chunks], np.float32),
        terminated=chunks[-1].terminated,
        truncated=not chunks[-1].terminated,
    )


def _ask(game: Game, method: Callable[[int], GameChunk], number: int) -> GameChunk:
    """The chunk that a game gives, checked: games are written by others."""
    try:
        chunk = method(number)
    except MagiWorldError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise DatasetError(
            f"{game.name} fails in {method.__name__}({number}): {type(error).__name__}: {error} "
            f"({place.filename}, line {place.lineno})"
        ) from error
    frames, shape = np.asarray(chunk.frames), (game.chunk_frames, *game.frame_shape)
    if frames.dtype != np.uint8 or frames.shape != shape:
        raise DatasetError(
            f"{game.name}: frames of different sizes or kinds, {method.__name__}({number}) gives "
            f"{frames.dtype} {list(frames.shape)}, the game has uint8 {list(shape)}"
        )
    if not np.isfinite(chunk.reward).all():
        raise DatasetError(
            f"{game.name}: the reward of {method.__name__}({number}) is {chunk.reward}"
        )
    return chunk


def _check_arguments(
    behaviours: Sequence[Behaviour], chunks: int, first_episode: int, horizon: int | None
) -> None:
    if horizon is not None and horizon < 1:
        raise DatasetError(f"an episode has at least 1 chunk, got the horizon {horizon}")
    if chunks < 1:
        raise DatasetError(f"a collection has at least 1 chunk, got {chunks}")
    if first_episode < 0:
        raise DatasetError(f"the first episode is numbered 0 or more, got {first_episode}")
    names = [behaviour.name for behaviour in behaviours]
    if not names or len(set(names)) != len(names):
        raise DatasetError(f"behaviours need names of their own, at least one; got {names}")
    for behaviour in behaviours:
        if not behaviour.share > 0:
            raise DatasetError(
                f"the share of {behaviour.name!r} is a number above 0, got {behaviour.share}"
            )


def _play(
    game: Game,
    behaviours: Sequence[Behaviour],
    chunks: int,
    first_seed: int,
    horizon: int | None,
) -> Iterator[EpisodeData]:
    """Play episode after episode, each with the behaviour that is furthest behind its share."""
    played = {behaviour.name: 0 for behaviour in behaviours}
    seed = first_seed
    while sum(played.values()) < chunks:
        behaviour = min(behaviours, key=lambda one: played[one.name] / one.share)
        episode = play_episode(game, behaviour, seed, horizon)
        played[behaviour.name] += len(episode.actions)
        seed += 1
        yield episode


def _count(result: Collected, episode: EpisodeData) -> None:
    result.episodes += 1
    result.chunks += len(episode.actions)
    result.real_tics += int(episode.valid_frames.sum())
    row = result.by_behaviour.setdefault(
        episode.behaviour, {"episodes": 0, "chunks": 0, "mean_tics": 0.0, "mean_return": 0.0}
    )
    survived = int(episode.valid_frames[1:].sum())
    row["mean_tics"] += (survived - row["mean_tics"]) / (row["episodes"] + 1)
    gained = episode.rewards.reshape(len(episode.actions), -1)[:, 0]  # the first player's
    row["mean_return"] += (float(gained.sum()) - row["mean_return"]) / (row["episodes"] + 1)
    row["episodes"] += 1
    row["chunks"] += len(episode.actions)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("chunks"),
        TimeRemainingColumn(),
        console=console,
    )
