"""What a step on fixed buffers gains: compiled, and on a CUDA device captured as one graph."""

import statistics
import time
from typing import Any

import torch

from magi_world.evaluation.bench import drawn_prompts
from magi_world.sampling.rollout import Rollout
from magi_world.world import World


def bench_fixed(
    world: World, num_slots: int, *, chunks: int, seed: int, steps: int | None = None
) -> dict[str, float]:
    """Ordinary, compiled and captured rollouts take turns, chunk by chunk, latents only.

    Args:
        world: the world.
        num_slots: slots of every rollout.
        chunks: timed chunks of each.
        seed: of noise and prompts.
        steps: denoising steps a chunk; the world's own by default.

    Returns:
        `compile_s`, the seconds of the first compiled chunk, and `compile_gain`, how many times
        faster the median compiled chunk is; on a CUDA device `graph_s` and `graph_gain` too.
    """
    seeds = list(range(seed, seed + num_slots))
    forms: dict[str, Rollout] = {"plain": world.rollout(num_slots, seeds=seeds, steps=steps)}
    forms["compile"] = world.rollout(num_slots, seeds=seeds, steps=steps, compile=True)
    if world.device.type == "cuda":
        forms["graph"] = world.rollout(num_slots, seeds=seeds, steps=steps, cuda_graph=True)
    prompts = drawn_prompts(world, num_slots, seed)
    first: dict[str, float] = {}
    spent: dict[str, list[float]] = {name: [] for name in forms}
    for name, rollout in forms.items():
        rollout.reset()
        first[name] = _seconds(rollout, next(prompts))
    for _ in range(chunks):
        texts = next(prompts)
        for name, rollout in forms.items():
            spent[name].append(_seconds(rollout, texts))
    typical = {name: statistics.median(times) for name, times in spent.items()}
    result: dict[str, float] = {}
    for name in list(forms)[1:]:
        result[f"{name}_s"] = first[name]
        result[f"{name}_gain"] = typical["plain"] / typical[name]
    return result


def _seconds(rollout: Rollout, prompts: list[str]) -> float:
    begin = time.perf_counter()
    chunk: Any = rollout.step(prompts)
    if chunk.latents.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin
