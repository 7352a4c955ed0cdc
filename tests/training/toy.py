"""A game of a few dozen pictures and a recipe that trains on it within seconds."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from magi_world.checkpoints.tensors import read_tensors
from magi_world.training.episodes import FIRST_SEED, EpisodeData
from magi_world.training.recipe import Recipe
from magi_world.training.recording import recording
from magi_world.training.run import train_world
from magi_world.world import World

PROMPTS = ["rest", "left", "right"]
SIZE = 32
SMALL_FITTED_Q: dict[str, Any] = {
    "moments": 60, "updates": 6, "batch_size": 16, "channels": (4, 4), "hidden": 8,
    "signal_weights": {"damage": -1.0},
}  # fmt: skip
RECIPE = """
[card]
name = "toy"
game = "Toy"
description = "A square that moves."
prompts = ["rest", "left", "right"]
horizon = 20
reward_range = [0.0, 4.0]

[card.paraphrases]
"rest" = ["wait"]
"left" = ["go left", "to the left"]

[config]
height = 32
width = 32
fps = 35

[config.vae]
video_size = 32
video_length = 4
patch_size = 8
patch_length = 4
embed_dim = 16
depth = 1
num_heads = 2
mlp_ratio = 1.0
ln_in_attn = false
use_final_proj = true

[config.dit]
num_layers = 2
hidden_size = 16
ffn_hidden_size = 16
num_attention_heads = 2
num_query_groups = 1
kv_channels = 8
caption_channels = 8
caption_max_length = 257

[config.text]
d_model = 8
d_ff = 8
d_kv = 4
num_heads = 2
num_layers = 1

[config.sampling]
kv_range = 3
num_steps = 2
scale_factor = 1.0
null_prompt_tokens = 4

[config.outcome]
hidden_size = 32
num_queries = 2
signals = ["damage"]

[vae]
steps = 4
batch_size = 4
checkpoint_minutes = 0.0
sample_every = 2

[dit]
steps = 4
batch_size = 2
sequence = 4
paraphrases = 2
checkpoint_minutes = 0.0
sample_every = 2

[outcome]
steps = 4
batch_size = 8
chunks = 64
checkpoint_minutes = 0.0
"""


def episode(number: int, knows_health: bool = True) -> EpisodeData:
    """A white square on grey that the actions move; it dies in every second episode."""
    rng = np.random.default_rng(number)
    steps = 9 + number % 4
    actions = rng.integers(0, 3, steps)
    frames = np.full((steps + 1, 4, SIZE, SIZE, 3), 90, np.uint8)
    x = 12
    for chunk in range(steps + 1):
        for frame in range(4):
            if chunk:
                x = int(np.clip(x + [0, -1, 1][actions[chunk - 1]], 0, 24))
            frames[chunk, frame, 8:16, x : x + 8] = 230
    dies = number % 2 == 0
    valid = np.full(steps + 1, 4)
    valid[-1] = 2 if dies else 4
    health = np.linspace(100, 0 if dies else 40, steps + 1, dtype=np.float32)
    return EpisodeData(
        seed=FIRST_SEED + number, behaviour="toy", frames=frames, actions=actions,
        rewards=valid[1:].astype(np.float32), valid_frames=valid,
        health=health if knows_health else None, terminated=dies, truncated=not dies,
    )  # fmt: skip


def record(root: Path, numbers: Sequence[int], name: str = "toy-v0", **keywords: Any) -> Path:
    """Write episodes as a Minari dataset."""
    with recording(
        root, name, shape=(4, SIZE, SIZE, 3), num_actions=3, description="toy"
    ) as recorder:
        for number in numbers:
            recorder.add(episode(number, **keywords))
    return root / name


def train(recipe: Recipe, data: Path | None, out: Path, **keywords: Any) -> World:
    folders = [] if data is None else [data]
    return train_world(recipe, folders, out, console=Console(file=io.StringIO()), **keywords)


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return {
        f"{path.name}:{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in read_tensors(path).items()
    }


def same_world(one: Path, other: Path) -> bool:
    mine, theirs = tensors_of(one / "world"), tensors_of(other / "world")
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)
