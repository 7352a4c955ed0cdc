"""How much of a closed loop's time goes into the environment instead of the model."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from magi_world.sampling.chunk import Chunk
from magi_world.sampling.rollout import Rollout


class Steppable(Protocol):
    """A vector environment around one rollout, as far as it is timed here."""

    rollout: Rollout

    def reset(self, *, seed: int) -> Any:
        """Begin episodes in all slots."""

    def step(self, actions: Any) -> Any:
        """Step all slots."""


def measure_overhead(
    env: Steppable, actions: Sequence[Sequence[Any]], *, decode: bool, seed: int = 0
) -> dict[str, float]:
    """Step an environment and tell the time of its model from its own.

    The model's time is that of the rollout's steps and resets and, with `decode`, of the frames
    that come out of them; everything else is the environment's.

    Args:
        env: freshly made.
        actions: one row of actions a step; the first step is not timed.
        decode: whether the environment observes frames.
        seed: seeds the slots.

    Returns:
        `env_step_ms`, the mean of a step, and `env_overhead`, the share of it that is not the
        model's.
    """
    inside = 0.0

    def timed(method: Callable[..., Chunk]) -> Callable[..., Chunk]:
        def wrapped(*given: Any, **named: Any) -> Chunk:
            nonlocal inside
            begin = time.perf_counter()
            chunk = method(*given, **named)
            if decode:
                chunk.frames  # noqa: B018 - kept by the chunk, so that the environment finds it
            _wait(env.rollout)
            inside += time.perf_counter() - begin
            return chunk

        return wrapped

    rollout: Any = env.rollout
    rollout.step, rollout.reset = timed(rollout.step), timed(rollout.reset)
    try:
        env.reset(seed=seed)
        env.step(actions[0])
        inside = 0.0
        begin = time.perf_counter()
        for row in actions[1:]:
            env.step(row)
        _wait(env.rollout)
        whole = time.perf_counter() - begin
    finally:
        del rollout.step, rollout.reset  # the methods of its class again
    count = len(actions) - 1
    return {"env_step_ms": whole / count * 1e3, "env_overhead": 1 - inside / whole}


def _wait(rollout: Rollout) -> None:
    if rollout.device.type == "cuda":
        torch.cuda.synchronize(rollout.device)
