# mypy: disable-error-code="arg-type,assignment,func-returns-value,unused-ignore"
"""Rollouts of the tiny world, and what tests ask of them."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi_world.sampling.rollout import Rollout
from magi_world.world import World
from tests.tiny_world import PROMPTS

SHAPE = (16, 1, 8, 8)
LEFT = PROMPTS[1]


def ready(world: World, width: int = 2, chunks: int = 3, **keywords: Any) -> Rollout:
    rollout = world.rollout(width, seeds=range(width), **keywords)
    rollout.reset()
    for index in range(chunks):
        rollout.step([PROMPTS[index % 3]] * width)
    return rollout


def pictures(frames: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (frames, 64, 64, 3), dtype=np.uint8)


def noise_of(world: World, generator: torch.Generator) -> Tensor:
    return torch.randn(world.config.latent_shape, generator=generator)


def generators(rollout: Rollout) -> Tensor:
    return torch.stack([generator.get_state() for generator in rollout.generators])


def unchanged(rollout: Rollout, twin: Rollout) -> bool:
    """Whether a rollout stands where its twin stands, and goes on as it does."""
    same = (
        torch.equal(generators(rollout), generators(twin))
        and torch.equal(rollout.chunk_index, twin.chunk_index)
        and rollout.time == twin.time
        and rollout.cache.filled == twin.cache.filled
        and rollout.cache.scratch == twin.cache.scratch
    )
    prompts = [LEFT] * rollout.batch_size
    one, other = rollout.step(prompts), twin.step(prompts)
    return same and torch.equal(one.latents, other.latents)
