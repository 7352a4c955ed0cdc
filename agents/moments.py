"""Real moments, and what the dream says of every action in each: what `fitted_q.py` learns from.

A moment is the end of a few real chunks. From it each action is dreamed one chunk ahead, or held
for a few, all with the same noise, so that what differs between them is what they do; the heads
say what each chunk is worth. A moment so teaches about every action, also those that nobody took
there, and no dream lasts long enough to lose a fireball. Only the chunks that lead to a moment are
real: whatever is learned from comes out of the world.

Shape suffixes: N moments, A actions, K chunks for which each is held, m chunks in view, S
sequences, Z latent channels, P latent frames of a chunk, h and w the latent grid.
"""

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, multiprocessing

from magi_world.checkpoints.tensors import read_tensors, write_tensors
from magi_world.errors import AgentError, CheckpointError, DatasetError
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.rollout import Rollout
from magi_world.training.store import Store
from magi_world.world import World

_LENGTH = 16
"""most chunks of a sequence, the first of which are history only"""
_TOGETHER = 8
"""sequences side by side"""
_PART = 16
"""times so many sequences whose moments are one file"""


@dataclass(frozen=True)
class Moments:
    """What is dreamed of N moments."""

    row: Tensor
    """int64 `[N]`, row of the store behind each moment: the chunks before it were seen"""
    following: Tensor
    """float16 `[N, A, K, Z, P, h, w]`, the chunks that each action leads to"""
    reward: Tensor
    """float32 `[N, A, K]`, what is learned from"""
    continues: Tensor
    """float32 `[N, A, K]`, the share that goes on behind each of these chunks"""

    def __len__(self) -> int:
        return len(self.row)


def moment_bytes(world: World, hold: int) -> int:
    """Bytes that a moment takes on the disk, whose actions are held for so many chunks."""
    chunk = 2 * int(np.prod(world.config.latent_shape)) + 8  # with what it gives and ends
    return len(world.card["prompts"]) * hold * chunk + 8


Judge = Callable[[Chunk], tuple[Tensor, Tensor]]
"""what is learned from n chunks and the share that goes on behind each, float32 `[n]` both"""


def sequence_length(store: Store, history: int) -> int:
    """Chunks of a sequence: 16, or as many as half of the training episodes have.

    Raises:
        DatasetError: they are too short for a moment with its history.
    """
    episodes = store.episodes(held_out=False)
    half_have = int(np.median(store.offsets[episodes + 1] - store.offsets[episodes]))
    if half_have <= history:
        raise DatasetError(
            f"half of the episodes have no more than {half_have} chunks: there is no moment with "
            f"{history} chunks before it"
        )
    return min(_LENGTH, half_have)


def sequences(
    store: Store,
    length: int,
    history: int,
    generator: torch.Generator,
    *,
    earliest: int = 0,
    from_row: int = 0,
) -> Tensor:
    """First rows of sequences that lie in training episodes, in a drawn order, int64 `[sequences]`.

    Together they keep all moments of an episode that have their history, from the chunk `earliest`
    on; the last sequence ends with the episode and overlaps the one before it. Shorter episodes
    have none, nor those that begin before `from_row`.

    Raises:
        DatasetError: there is none at all.
    """
    starts: list[int] = []
    skipped = max(0, earliest - history)
    for episode in store.episodes(held_out=False):
        first = int(store.offsets[episode]) + skipped
        last = int(store.offsets[episode + 1]) - length
        if last < first or store.offsets[episode] < from_row:
            continue
        own = list(range(first, last + 1, length - history))
        starts += own if own[-1] == last else [*own, last]
    if not starts:
        where = f" of those from row {from_row} on" if from_row else ""
        raise DatasetError(f"no episode{where} has {length} chunks from chunk {skipped} on")
    return torch.tensor(starts)[torch.randperm(len(starts), generator=generator)]


@dataclass(frozen=True)
class Taken:
    """Moments that were dreamed from less data: the first files of a folder."""

    parts: int
    """how many files"""
    chunks: int
    """rows of the store that were their data, the first ones"""


class Dreamer:
    """Dreams every action ahead of all moments of some sequences.

    A rollout follows the real chunks; at every moment it is forked into as many futures as there
    are actions, all with the same noise.

    Args:
        world: a world with outcome heads.
        store: real data, encoded by the world's VAE.
        judge: says what is learned from the dreamed chunks.
        history: m, chunks that the agent sees.
        hold: K, chunks for which each action is held.
        steps: denoising steps of a chunk; None is the world's own number.
        temperature: scale of the noise.

    Raises:
        DatasetError: see :func:`sequence_length`.
    """

    def __init__(
        self,
        world: World,
        store: Store,
        judge: Judge,
        *,
        history: int,
        hold: int = 1,
        steps: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.world, self.judge, self.history, self.hold = world, judge, history, hold
        self.steps, self.temperature = steps, temperature
        self.length = sequence_length(store, history)
        self.latents = torch.from_numpy(store.latents())
        self.action = torch.from_numpy(store.action)
        self.prompts: list[str] = world.card["prompts"]

    @torch.inference_mode()
    def dream(self, start_S: Tensor, generator: torch.Generator) -> Moments:
        """All moments of the sequences that begin at these rows; their noise from `generator`."""
        rollout = self.world.rollout(len(start_S), seeds=[0] * len(start_S))  # it draws nothing
        for slot, row in enumerate(start_S.tolist()):
            first = self.latents[row : row + 1].float()
            rollout.reset([slot], latents=first, prompts=[self.prompts[self.action[row]]])
        found: list[dict[str, Tensor]] = []
        for at in range(1, self.length):
            row_S = start_S + at
            if at >= self.history:
                found.append({"row": row_S} | self._futures(rollout, generator))
            taken = [self.prompts[action] for action in self.action[row_S]]
            rollout.observe(self.latents[row_S].float(), taken)
        together = {name: torch.stack([one[name] for one in found], dim=1) for name in found[0]}
        return Moments(**{name: tensor.flatten(0, 1) for name, tensor in together.items()})

    def _futures(self, rollout: Rollout, generator: torch.Generator) -> dict[str, Tensor]:
        """What every action leads to from the present of a rollout, but for the `row`."""
        S, A = rollout.batch_size, len(self.prompts)
        seed_S = torch.randint(2**62, (S,), generator=generator)
        fork = rollout.fork(
            [slot for slot in range(S) for _ in range(A)], seed_S.repeat_interleave(A).tolist(),
            steps=self.steps, temperature=self.temperature,
        )  # fmt: skip
        chunks = [fork.step(self.prompts * S) for _ in range(self.hold)]
        judged = [self.judge(chunk) for chunk in chunks]
        per_chunk = {
            "following": torch.stack([chunk.latents.half() for chunk in chunks], dim=1),
            "reward": torch.stack([reward for reward, _ in judged], dim=1).float(),
            "continues": torch.stack([continues for _, continues in judged], dim=1).float(),
        }
        return {name: tensor.unflatten(0, (S, A)).cpu() for name, tensor in per_chunk.items()}


def dream_moments(
    dreamer: Dreamer,
    store: Store,
    folder: Path,
    *,
    count: int,
    seed: int,
    earliest: int = 0,
    taken: Taken | None = None,
    workers: int = 1,
    say: Callable[[int], None] = lambda dreamed: None,
) -> Moments:
    """Dream at least `count` moments, in parts that are kept in a folder.

    Where the data has fewer they are dreamed again, with other noise. Parts that lie there already
    are read, not dreamed again; each has a generator of its own, so that a dream that was stopped
    goes on to the same moments. Where the first are `taken` from less data, those that follow lie
    in the data beyond it before any is dreamed again.

    Args:
        dreamer: dreams them; with several workers its judge must be one that can be pickled.
        store: the same data as the dreamer's.
        folder: where the parts are, one file each.
        count: how many moments.
        seed: of their order and noise.
        earliest: the chunk of an episode from which on it has moments.
        taken: the parts in the folder that are of less data, and of how much.
        workers: processes that dream parts side by side, each with its share of the threads.
        say: told how many there are, after every part.

    Raises:
        AgentError: a file of a part is damaged, or a worker has died.
        DatasetError: see :func:`sequences`.
    """
    shuffler = torch.Generator().manual_seed(seed)
    waiting: list[Tensor] = []
    todo: list[_Part] = []
    parts: list[dict[str, Tensor]] = []
    planned = done = 0
    for number in range(taken.parts if taken is not None else 0):
        if planned < count:
            parts.append(_read(_path(folder, number), "take it from where it was dreamed"))
            planned = done = done + len(parts[-1]["row"])
    from_row = taken.chunks if taken is not None else 0
    while planned < count:
        if not waiting:
            order = sequences(
                store, dreamer.length, dreamer.history, shuffler,
                earliest=earliest, from_row=from_row,
            )  # fmt: skip
            waiting = list(order.split(_PART * _TOGETHER))
            from_row = 0  # then once more through all of them
        number = len(parts) + len(todo)
        todo.append(_Part(waiting.pop(0), seed * 100_000 + number, _path(folder, number)))
        planned += len(todo[-1].start_S) * (dreamer.length - dreamer.history)
    with _dreaming(dreamer, workers) as dream:
        for path in dream(todo):
            parts.append(_read(path))
            done += len(parts[-1]["row"])
            say(done)
    return Moments(**_joined(parts))


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:04d}.safetensors"


@dataclass(frozen=True)
class _Part:
    """What becomes one file."""

    start_S: Tensor
    seed: int
    path: Path


@contextmanager
def _dreaming(dreamer: Dreamer, workers: int) -> Iterator[Callable[[list[_Part]], Iterator[Path]]]:
    """What dreams parts, in their order, and gives their files: here or in other processes."""
    if workers == 1:
        yield lambda parts: (_dream_part(dreamer, part) for part in parts)
        return
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")  # a forked autograd refuses to run
    pool = ProcessPoolExecutor(workers, context, _begin_worker, (dreamer, threads))
    try:
        yield lambda parts: pool.map(_dream_in_worker, parts)
    except BrokenProcessPool:
        raise AgentError(
            "a worker that dreamed moments has died, perhaps for want of memory: resume, with "
            "fewer workers if it happens again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


_own: dict[str, Any] = {}
"""in a worker: its dreamer"""


def _begin_worker(dreamer: Dreamer, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that trains decides when to stop
    torch.set_num_threads(threads)
    _own["dreamer"] = dreamer


def _dream_in_worker(part: _Part) -> Path:
    return _dream_part(_own["dreamer"], part)


def _dream_part(dreamer: Dreamer, part: _Part) -> Path:
    """Dream one part, unless it lies there already; returns its file."""
    if not part.path.exists():
        generator = torch.Generator().manual_seed(part.seed)
        dreamed = [vars(dreamer.dream(some, generator)) for some in part.start_S.split(_TOGETHER)]
        part.path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(_joined(dreamed), part.path, {})
    return part.path


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}


def _read(path: Path, remedy: str = "take it away, and it is dreamed again") -> dict[str, Tensor]:
    try:
        return read_tensors(path)
    except CheckpointError as error:
        raise AgentError(f"{error}: {remedy}") from None
