"""Every chunk of a store as latents of a world's VAE, made once and kept beside the frames."""

import json
import os
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from magi_world.disk import check_disk, write_text
from magi_world.errors import DatasetError
from magi_world.training.prepare import read_store, store_bytes
from magi_world.training.reading import Reading
from magi_world.training.store import Store, told_if_damaged
from magi_world.world import World

_ENCODE_BATCH = 64  # chunks
_TRIED = 8  # chunks that tell one VAE from another


def scale_note(store: Store) -> Path:
    """The file that says which scale the latents have."""
    return store.folder / "scale.json"


def mirrored_path(store: Store) -> Path:
    """The file of the latents that `mirrored_latents` keeps."""
    return store.folder / "mirrored.npy"


def encode_store(
    world: World, store: Store, console: Console, *, scale: float | None = None
) -> float:
    """Encode every chunk once; return the scale that gives the latents unit deviation.

    The scale is measured on the training part, unless one is given, and kept beside the latents.
    """
    note = scale_note(store)
    if store.latents_path.exists() and note.exists():
        with told_if_damaged(note, "delete it, and the chunks are encoded again"):
            return float(json.loads(note.read_text())["scale_factor"])
    console.print(f"encoding {len(store.action)} chunks")
    partial = store.folder / "latents.partial.npy"
    latents = _encode(world, store.frames, partial, 1 / world.config.sampling.scale_factor)
    measured = float(latents[~store.held_out].astype(np.float32).std())
    deviation = measured if scale is None else 1 / scale
    for i in range(0, len(latents), 4096):
        latents[i : i + 4096] = latents[i : i + 4096].astype(np.float32) / deviation
    latents.flush()
    del latents
    os.replace(partial, store.latents_path)
    write_text(note, json.dumps({"scale_factor": 1 / deviation}))
    return 1 / deviation


@torch.inference_mode()
def encoded_by(world: World, store: Store) -> bool:
    """Whether the latents of a store are those that a world's VAE gives, seen by a few chunks."""
    frames, latents = store.frames, store.latents()
    if frames.shape[1:] != world.config.frames_shape or (
        latents.shape[1:] != world.config.latent_shape
    ):
        return False
    rows = np.linspace(0, len(frames) - 1, num=min(_TRIED, len(frames)), dtype=np.int64)
    found = world.encode(np.ascontiguousarray(frames[rows])).cpu().numpy()
    apart = np.sqrt(np.square(found - latents[rows].astype(np.float32)).mean())
    # float16 and another machine's rounding are far below; another VAE is about as far as 1
    return bool(apart < 0.05)


def mirrored_latents(world: World, store: Store, console: Console) -> NDArray[np.float16]:
    """Latents of all frames with left and right exchanged, in the world's scale.

    They are encoded once and kept beside the others; float16 `[M, Z, P, h, w]`.

    Raises:
        DatasetError: the disk is too small, or their file is damaged.
    """
    path = mirrored_path(store)
    if not path.exists():
        check_disk(path, 2 * len(store.action) * prod(world.config.latent_shape), DatasetError)
        console.print(f"encoding {len(store.action)} chunks in a mirror")
        partial = store.folder / "mirrored.partial.npy"
        _encode(world, store.frames[..., ::-1, :], partial, 1.0).flush()
        os.replace(partial, path)
    return store.encoded(path)


@torch.inference_mode()
def _encode(world: World, frames: NDArray[np.uint8], path: Path, scale: float) -> np.memmap:
    """Latents of all chunks, times a scale, written to a file and still open."""
    shape = (len(frames), *world.config.latent_shape)
    latents = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    for i in range(0, len(latents), _ENCODE_BATCH):
        some = np.ascontiguousarray(frames[i : i + _ENCODE_BATCH])
        latents[i : i + _ENCODE_BATCH] = (world.encode(some) * scale).cpu().numpy()
    return latents


def read_encoded(world: World, data: Sequence[Path], out: Path, console: Console) -> Store:
    """Data read as that of a trained world was, with latents of its VAE, kept in `out/store`.

    Raises:
        DatasetError: data that cannot be used, too small a disk, or latents of another VAE that an
            earlier training has left in `out`.
        RecipeError: `out` holds a store that was read from other data.
    """
    reading = Reading(**world.card.get("reading", {}))
    store = read_store(
        world.card, world.config, reading, data, out, console,
        lambda chunks: store_bytes(world.config, chunks),
    )  # fmt: skip
    encode_store(world, store, console, scale=world.config.sampling.scale_factor)
    if not encoded_by(world, store):
        raise DatasetError(
            f"{store.latents_path} is of another VAE than {world.name!r} has: choose another folder"
        )
    return store
