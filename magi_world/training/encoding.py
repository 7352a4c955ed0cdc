"""Every chunk of a store as latents of a world's VAE, made once and kept beside the frames."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from magi_world.training.prepare import read_store, store_bytes
from magi_world.training.reading import Reading
from magi_world.training.store import Store
from magi_world.world import World

_ENCODE_BATCH = 64  # chunks


def scale_note(store: Store) -> Path:
    """The file that says which scale the latents have."""
    return store.folder / "scale.json"


@torch.inference_mode()
def encode_store(
    world: World, store: Store, console: Console, *, scale: float | None = None
) -> float:
    """Encode every chunk once; return the scale that gives the latents unit deviation.

    The scale is measured on the training part, unless one is given, and kept beside the latents.
    """
    note = scale_note(store)
    if store.latents_path.exists() and note.exists():
        return float(json.loads(note.read_text())["scale_factor"])
    console.print(f"encoding {len(store.action)} chunks")
    shape = (len(store.action), *world.config.latent_shape)
    partial = store.folder / "latents.partial.npy"
    latents = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
    scale_now = world.config.sampling.scale_factor
    for i in range(0, len(latents), _ENCODE_BATCH):
        frames = np.ascontiguousarray(store.frames[i : i + _ENCODE_BATCH])
        latents[i : i + _ENCODE_BATCH] = (world.encode(frames) / scale_now).cpu().numpy()
    measured = float(latents[~store.held_out].astype(np.float32).std())
    deviation = measured if scale is None else 1 / scale
    for i in range(0, len(latents), 4096):
        latents[i : i + 4096] = latents[i : i + 4096].astype(np.float32) / deviation
    latents.flush()
    del latents
    os.replace(partial, store.latents_path)
    note.write_text(json.dumps({"scale_factor": 1 / deviation}))
    return 1 / deviation


def read_encoded(world: World, data: Sequence[Path], out: Path, console: Console) -> Store:
    """Data read as that of a trained world was, with latents of its VAE, kept in `out/store`.

    Raises:
        DatasetError: data that cannot be used, or too small a disk.
        RecipeError: `out` holds a store that was read from other data.
    """
    reading = Reading(**world.card.get("reading", {}))
    store = read_store(
        world.card, world.config, reading, data, out, console,
        lambda chunks: store_bytes(world.config, chunks),
    )  # fmt: skip
    encode_store(world, store, console, scale=world.config.sampling.scale_factor)
    return store
