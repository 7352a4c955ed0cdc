"""Read a folder of videos whose prompts stand in one table, `prompts.csv`.

    file,start_second,prompt
    monday.mp4,0,stand still
    monday.mp4,2.5,strafe left

A prompt holds from its place on until the next row of that video; the place is a second, or in a
column `chunk` instead the number of a chunk. Prompts are those of the recipe's card or their
paraphrases. A video is one episode of single frames (`training/reading.py` makes chunks of them):
its first picture, repeated, is the reset chunk, behind which chunks are counted from 0. It earns
nothing and never terminates, because nobody has written down that it would.
"""

import csv
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.config import WorldConfig
from magi_world.errors import DatasetError, missing_package
from magi_world.players import chunk_prompts, chunk_wordings
from magi_world.training.episodes import FIRST_SEED, EpisodeData, Facts, is_held_out
from magi_world.training.pictures import shrink
from magi_world.training.reading import Reading, group

TABLE = "prompts.csv"
_COLUMNS = "file, prompt and start_second or chunk"

Rows = dict[str, list[tuple[int, int]]]
"""by video: from which step on which action holds"""


def video_facts(folder: Path, card: Mapping[str, Any], fps: int, reading: Reading) -> Facts:
    """Look at a folder of videos and its table without decoding more than a picture of each.

    Raises:
        DatasetError: the table or a video cannot be used, there are fewer than two videos, they
            differ in size, or have a rate that is no multiple of `fps`.
        MissingPackage: PyAV is absent.
    """
    rows = _read_table(folder, card, fps, reading)
    if len(rows) < 2:
        raise DatasetError(
            f"{folder / TABLE} names {len(rows)} video, 2 are needed: one is held out"
        )
    chunks, sizes = 0, {}
    for name in rows:
        with _open(folder / name) as container:
            stream = container.streams.video[0]
            sizes[name] = (int(stream.height), int(stream.width))
            stride = _stride(stream, folder / name, fps)
            seconds = (container.duration or 0) / 1e6
            frames = max(int(stream.frames), round(seconds * float(stream.average_rate)) + 1)
            chunks += frames // stride // reading.steps_per_chunk + 2
    if len(set(sizes.values())) > 1:
        first, other = sorted(sizes, key=lambda name: sizes[name])[:: len(sizes) - 1]
        raise DatasetError(
            f"{folder}: frames of different sizes, {first} has {_by(sizes[first])} pixels and "
            f"{other} {_by(sizes[other])}"
        )
    size = next(iter(sizes.values()))
    return Facts(size, None, len(chunk_prompts(card)), chunk_prompts(card), chunks)


def read_videos(
    folder: Path, card: Mapping[str, Any], config: WorldConfig, reading: Reading
) -> Iterator[EpisodeData]:
    """Go through the videos by name, one in memory at a time.

    Every twentieth is held out, and the last one where there are fewer.

    Raises:
        DatasetError: as :func:`video_facts`, or a video is shorter than one chunk.
        MissingPackage: PyAV is absent.
    """
    rows = _read_table(folder, card, config.fps, reading)
    seeds = [FIRST_SEED + number for number in range(len(rows))]
    if not any(map(is_held_out, seeds)):
        seeds[-1] = next(seed for seed in range(FIRST_SEED, FIRST_SEED + 99) if is_held_out(seed))
    for seed, (name, places) in zip(seeds, rows.items(), strict=True):
        frames = _decode(folder / name, config, reading)
        actions = np.empty(len(frames) - 1, np.int64)
        if places[-1][0] > len(frames):
            raise DatasetError(
                f"{folder / TABLE}: a row of {name!r} begins behind the end of the video, which "
                f"has {len(frames) / config.fps:.1f} seconds"
            )
        for step, action in places:
            actions[step:] = action
        chunks, chosen, rewards, valid = group(
            frames, actions, np.zeros(len(actions), np.float32), terminated=False, reading=reading,
            chunk_frames=config.chunk_frames, source=str(folder / name),
        )  # fmt: skip
        yield EpisodeData(
            seed=seed, behaviour="video", frames=chunks, actions=chosen, rewards=rewards,
            valid_frames=valid, health=None, terminated=False, truncated=True,
        )  # fmt: skip


def _read_table(folder: Path, card: Mapping[str, Any], fps: int, reading: Reading) -> Rows:
    """The rows of the table by video, videos by name and rows by step."""
    path = folder / TABLE
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            columns = {str(name).strip() for name in table.fieldnames or ()}
            lines = [{str(k).strip(): str(v).strip() for k, v in line.items()} for line in table]
    except FileNotFoundError:
        raise DatasetError(
            f"{folder} has no {TABLE}: without it no chunk has an action (columns {_COLUMNS})"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path} is no table of comma-separated text: {error}") from None
    kinds = {"start_second", "chunk"} & columns
    if not {"file", "prompt"} <= columns or len(kinds) != 1:
        raise DatasetError(f"{path} has the columns {sorted(columns)}, it needs {_COLUMNS}")
    (kind,) = kinds
    known = _indices(card)
    rows: Rows = {}
    for number, line in enumerate(lines, start=2):
        where = f"{path}, line {number}"
        try:
            place = float(line[kind])
        except ValueError:
            raise DatasetError(f"{where}: {kind} {line[kind]!r} is no number") from None
        if not 0 <= place < 1e9 or (kind == "chunk" and place != int(place)):
            raise DatasetError(f"{where}: {kind} {line[kind]!r} is no place in a video")
        if line["prompt"] not in known:
            raise DatasetError(
                f"{where}: the prompt {line['prompt']!r} is not in the recipe, which has "
                f"{chunk_prompts(card)} and their paraphrases"
            )
        if not (folder / line["file"]).is_file():
            raise DatasetError(f"{where}: there is no video {line['file']!r} beside the table")
        # step i leads to frame i + 1
        step = place * reading.steps_per_chunk if kind == "chunk" else max(0.0, place * fps - 1)
        rows.setdefault(line["file"], []).append((round(step), known[line["prompt"]]))
    for name, places in rows.items():
        places.sort()
        if any(one[0] == other[0] and one != other for one, other in pairwise(places)):
            raise DatasetError(f"{path}: two prompts hold at the same place of {name!r}")
        if places[0][0] > 0:
            raise DatasetError(f"{path}: no row says what holds at the beginning of {name!r}")
    return dict(sorted(rows.items()))


def _indices(card: Mapping[str, Any]) -> dict[str, int]:
    """Index of every prompt and paraphrase of a card."""
    wordings = chunk_wordings(card)
    return {str(text): index for index, texts in enumerate(wordings) for text in texts}


def _open(path: Path) -> Any:
    try:
        import av
    except ImportError as error:
        raise missing_package("av", "video", "reading videos") from error
    try:
        container = av.open(str(path))
    except (av.error.FFmpegError, OSError) as error:
        raise DatasetError(f"{path} cannot be read as a video: {error}") from None
    if not container.streams.video or not container.streams.video[0].average_rate:
        container.close()
        raise DatasetError(f"{path} holds no video with a rate of frames")
    return container


def _stride(stream: Any, path: Path, fps: int) -> int:
    """Every how many frames one is taken."""
    rate = float(stream.average_rate)
    stride = max(1, round(rate / fps))
    if abs(rate / stride - fps) > 0.02 * fps:
        raise DatasetError(
            f"{path} has {rate:g} frames a second, no multiple of the recipe's fps {fps}"
        )
    return stride


def _decode(path: Path, config: WorldConfig, reading: Reading) -> npt.NDArray[np.uint8]:
    """The frames that are used, uint8 `[n, H, W, 3]` of the world's size if they are resized."""
    with _open(path) as container:
        stream = container.streams.video[0]
        stride = _stride(stream, path, config.fps)
        frames: list[npt.NDArray[np.uint8]] = []
        for number, frame in enumerate(_frames(container, stream, path)):
            if number % stride == 0:
                picture = frame.to_ndarray(format="rgb24")
                if reading.resize:
                    picture = shrink(picture, config.height, config.width)
                if frames and picture.shape != frames[0].shape:
                    raise DatasetError(f"{path} has frames of different sizes")
                frames.append(picture)
    if not frames:
        raise DatasetError(f"{path} holds no frame")
    return np.stack(frames)


def _frames(container: Any, stream: Any, path: Path) -> Iterator[Any]:
    from av.error import FFmpegError

    try:
        yield from container.decode(stream)
    except FFmpegError as error:
        raise DatasetError(f"{path} is damaged: {error}") from None


def _by(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"
