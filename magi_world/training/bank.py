"""Where dreams begin: openings and clips of a bank, drawn from the data of the world."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from magi_world.checkpoints.world_format import Bank
from magi_world.errors import ConfigError, DatasetError
from magi_world.players import chunk_prompts
from magi_world.training.encoding import encoded_by
from magi_world.training.store import Store, open_store
from magi_world.world import World

_CLIPS = 600  # longer clips in the bank: agents that start anywhere see as many situations
_CLIP_BYTES = 10_000_000  # and most that they take in the world's files
OTHER_BANK = "other_bank"
"""entry of the card of a world in memory whose clips are not those that lie in its folder"""
SOON = 8
"""chunks behind an eventful clip within which something happens"""


def make_bank(
    world: World, store: Store, clips: int | None = None, *, eventful: float = 0.0, soon: int = SOON
) -> Bank:
    """The distinct real openings, and longer clips from all ages of training episodes.

    Args:
        world: whose latents the store holds.
        store: the data.
        clips: how many longer clips; as many as a world ships with by default.
        eventful: the share of them that is drawn from before an event, see :func:`events`.
        soon: chunks behind such a clip within which the event happens.

    Raises:
        ConfigError: a share outside 0 to 1.
        DatasetError: eventful clips of data in which nothing happens.
    """
    if not 0.0 <= eventful <= 1.0:
        raise ConfigError(f"the share of eventful clips is between 0 and 1, got {eventful}")
    generator = np.random.default_rng(0)
    latents = store.latents()
    prompts = chunk_prompts(world.card)
    openings: dict[bytes, int] = {}
    for episode in store.episodes(held_out=False):
        row = int(store.offsets[episode])
        openings.setdefault(store.frames[row].tobytes(), row)
    rows = [(row, row + 1) for row in openings.values()]
    length = max(1, world.config.sampling.kv_range - 1)  # what the next chunk can see
    if clips is None:
        clips = min(_CLIPS, _CLIP_BYTES // (2 * length * int(np.prod(world.config.latent_shape))))
    episodes = [
        (int(store.offsets[e]), int(store.offsets[e + 1]) - 1) for e in store.episodes(False)
    ]  # the last chunk may hold repeated pictures
    candidates = np.concatenate(
        [np.arange(first, max(first, end - length + 1)) for first, end in episodes]
    )
    before = round(eventful * clips)
    picks = generator.choice(candidates, size=min(clips - before, len(candidates)), replace=False)
    if before:
        ends = np.concatenate([np.full(max(0, b - a - length + 1), b + 1) for a, b in episodes])
        happens = np.concatenate([[0], events(store).cumsum()])
        first = candidates + length
        soon_after = happens[np.minimum(first + soon, ends)] > happens[first]
        chosen = candidates[soon_after]
        if not len(chosen):
            raise DatasetError("nothing happens in this data: there are no eventful clips")
        more = generator.choice(chosen, size=min(before, len(chosen)), replace=False)
        picks = np.concatenate([picks, more])
    rows += [(int(row), int(row) + length) for row in np.sort(picks)]
    return Bank(
        tuple(torch.from_numpy(latents[a:b].astype(np.float32)) for a, b in rows),
        tuple(tuple(prompts[i] for i in store.action[a:b]) for a, b in rows),
        num_openings=len(openings),
    )


def events(store: Store) -> NDArray[np.bool_]:
    """Chunks in which something happens, bool `[M]`.

    The episode ends, health is lost, or a reward is another than it mostly is: a point in Pong, a
    death in a game that rewards every chunk survived.
    """
    lost = np.zeros(len(store.action), bool)
    lost[1:] = np.diff(store.health) < 0  # False where health is not known
    lost[store.offsets[:-1]] = False  # a reset chunk counts for nothing
    return np.asarray(store.terminal | store.unusual_rewards() | lost)


def with_more_clips(
    world: World, run: Path, clips: int, *, eventful: float = 0.0, soon: int = SOON
) -> World:
    """The same world with a bank of many clips, drawn from the data of a run that trained on it.

    Agents that dream a few chunks from each start see more of the game so, and more of what
    matters in it where a share of the clips is eventful, see :func:`make_bank`. The world shares
    its weights with the one given; its card says under `OTHER_BANK` what clips it has.

    Raises:
        DatasetError: see `encoded_store` and `make_bank`.
        ConfigError: see `make_bank`.
    """
    store = encoded_store(world, run)
    other = copy.copy(world)
    other.bank = make_bank(world, store, clips, eventful=eventful, soon=soon)
    told: dict[str, Any] = {"clips": clips, "chunks": len(store.valid)}
    if eventful:
        told |= {"eventful": eventful, "soon": soon}
    other.card = {**world.card, OTHER_BANK: told}
    return other


def encoded_store(world: World, run: Path) -> Store:
    """The data of a run of train-world, encoded by the VAE of a world.

    Raises:
        DatasetError: the folder has none, or latents of another VAE.
    """
    folder = run / "store"
    if not (folder / "latents.npy").exists():
        raise DatasetError(f"{run} is no folder of train-world: {folder}/latents.npy misses")
    store = open_store(folder)
    if not encoded_by(world, store):
        raise DatasetError(
            f"{folder}/latents.npy is of another VAE than {world.name!r} has: name the world that "
            f"was trained there, such as --world {run / 'world'}"
        )
    return store
