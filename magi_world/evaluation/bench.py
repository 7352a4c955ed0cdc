"""Speed and memory of rollouts: whether they stay flat, how fast they are, how near to the peak.

Times say something about the machine they were taken on; every share and every ratio here comes
from one run.
"""

import itertools
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from magi_world.evaluation.profiling import profile_steps
from magi_world.players import chunk_prompts
from magi_world.sampling.rollout import Rollout
from magi_world.world import World

Say = Callable[[str], None]

MATMUL_SIZES = (512, 768, 1024, 1536, 2048)
PEAK_SECONDS = 5.0
"""longest time for the repeats of one size; processors without units for a dtype need it"""
SETTLE, SPAN = 200, 500
"""chunks before the first reading, and chunks whose median step time is compared"""


def resident_bytes() -> int:
    """Resident memory of this process; its highest so far where the system has no /proc."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def drawn_prompts(world: World, width: int, seed: int) -> Iterator[list[str]]:
    """Endless rows of `width` prompts of the card, drawn uniformly."""
    rng = np.random.default_rng(seed)
    names = chunk_prompts(world.card)
    while True:
        yield [names[index] for index in rng.integers(len(names), size=width)]


def bench_rollout(
    world: World, *, chunks: int = 5000, seed: int = 0, say: Say = lambda text: None
) -> dict[str, Any]:
    """Run one slot for many chunks and compare its memory and step time early and late.

    Memory at the end is compared with that at chunk 200, the median step time of the last 500
    chunks with that of chunks 200 to 700; shorter runs take shorter spans, down to 4 chunks.

    Raises:
        ValueError: fewer than 4 chunks.
    """
    if chunks < 4:
        raise ValueError(f"chunks {chunks}: at least 4 are needed to compare early with late")
    settle = min(SETTLE, chunks // 2)
    span = min(SPAN, (chunks - settle) // 2)
    rollout = world.rollout(1, seeds=[seed])
    rollout.reset()
    seconds = np.zeros(chunks)
    early_bytes = 0
    for index, prompts in enumerate(itertools.islice(drawn_prompts(world, 1, seed), chunks)):
        seconds[index] = _timed_step(rollout, prompts, decode=False)
        if index + 1 == settle:
            early_bytes = resident_bytes()
        if (index + 1) % 500 == 0:
            say(f"{index + 1} of {chunks} chunks, {resident_bytes() / 2**20:.1f} MiB resident")
    late_bytes = resident_bytes()
    early = float(np.median(seconds[settle : settle + span]))
    late = float(np.median(seconds[-span:]))
    return {
        "chunks": chunks,
        "resident_mib_early": early_bytes / 2**20,
        "resident_mib_end": late_bytes / 2**20,
        "memory_ratio": late_bytes / early_bytes,
        "step_ms_early": early * 1e3,
        "step_ms_end": late * 1e3,
        "time_ratio": late / early,
        "early_at_chunk": settle,
        "span": span,
    }


def bench_slots(
    load: Callable[[], World],
    num_slots: int,
    *,
    chunks: int = 100,
    seed: int = 0,
    steps: int | None = None,
    peak_flops: float | None = None,
    profiled: int = 0,
) -> dict[str, Any]:
    """Speed of one rollout of `num_slots` slots, closed loop: with frames, then with latents only.

    `cold_start_s` is loading the world, the first reset and the first step with its frames; it is
    in no other number. Latencies are of one step of all slots, `p50_ms` and `p95_ms` with frames
    decoded, `latent_…` without. `peak_share` relates the floating point operations of one step
    without decode (counted, not estimated) to `peak_flops`; `mflop_per_chunk` are those of one
    slot. With `profiled` steps the row has a `profile`, see `profiling.profile_steps`; they come
    last and are in no other number.

    Raises:
        ValueError: fewer than 1 slot or chunk.
    """
    if num_slots < 1 or chunks < 1:
        raise ValueError(f"{num_slots} slots and {chunks} chunks: both must be at least 1")
    begin = time.perf_counter()
    world = load()
    rollout = world.rollout(num_slots, seeds=list(range(seed, seed + num_slots)), steps=steps)
    rollout.reset()
    prompts = drawn_prompts(world, num_slots, seed)
    _timed_step(rollout, next(prompts), decode=True)
    cold_start = time.perf_counter() - begin

    for prompt in chunk_prompts(
        world.card
    ):  # encoding a new prompt is work that steps do not repeat
        world.caption(prompt)
    flops = step_flops(rollout, next(prompts))
    for _ in range(max(2, chunks // 20)):  # the first steps warm caches and clocks
        _timed_step(rollout, next(prompts), decode=True)
    with_frames = np.array(
        [_timed_step(rollout, next(prompts), decode=True) for _ in range(chunks)]
    )
    latent = np.array([_timed_step(rollout, next(prompts), decode=False) for _ in range(chunks)])
    steps_per_s = num_slots * chunks / latent.sum()
    frames_per_s = num_slots * chunks * world.config.chunk_frames / with_frames.sum()
    row: dict[str, Any] = {
        "num_envs": num_slots,
        "frames_per_s": float(frames_per_s),
        "agent_steps_per_s": float(steps_per_s),
        "p50_ms": float(np.quantile(with_frames, 0.5) * 1e3),
        "p95_ms": float(np.quantile(with_frames, 0.95) * 1e3),
        "latent_p50_ms": float(np.quantile(latent, 0.5) * 1e3),
        "latent_p95_ms": float(np.quantile(latent, 0.95) * 1e3),
        "cold_start_s": cold_start,
        "times_real_rate": float(frames_per_s / num_slots / world.config.fps),
        "gflop_per_step": flops / 1e9,
        "mflop_per_chunk": flops / num_slots / 1e6,
        "peak_gflops": None if peak_flops is None else peak_flops / 1e9,
        "peak_share": None if peak_flops is None else flops / float(latent.mean()) / peak_flops,
        "denoising_steps": rollout.steps,
        "chunks": chunks,
        "dtype": str(world.dtype).removeprefix("torch."),
        "device": str(world.device),
        "threads": torch.get_num_threads(),
    }
    if profiled:
        row["profile"] = profile_steps(rollout, list(itertools.islice(prompts, profiled + 1)))
    return row


def bench_env(
    load: Callable[[], World],
    widths: Sequence[int],
    *,
    chunks: int = 100,
    seed: int = 0,
    steps: int | None = None,
    profiled: int = 0,
    say: Say = lambda text: None,
) -> list[dict[str, Any]]:
    """One row of `bench_slots` a width, all beside one matmul peak measured first.

    The peak is that of the world's dtype, with the threads of this process.
    """
    world = load()
    peak = matmul_peak(world.device, world.dtype)
    say(f"matmul peak: {peak / 1e9:.1f} GFLOP/s ({world.dtype}, {torch.get_num_threads()} threads)")
    rows = []
    for width in widths:
        say(f"{width} slots, {chunks} chunks with frames and {chunks} with latents")
        rows.append(
            bench_slots(
                load, width, chunks=chunks, seed=seed, steps=steps, peak_flops=peak,
                profiled=profiled,
            )
        )  # fmt: skip
    return rows


def matmul_peak(
    device: torch.device,
    dtype: torch.dtype,
    *,
    sizes: Sequence[int] = MATMUL_SIZES,
    repeats: int = 5,
) -> float:
    """Floating point operations a second of the best square matmul among `sizes`.

    A size is repeated until it has had its repeats or `PEAK_SECONDS`, and at least once.
    """
    best = 0.0
    for size in sizes:
        matrix = torch.ones(size, size, device=device, dtype=dtype)
        torch.mm(matrix, matrix)
        until = time.perf_counter() + PEAK_SECONDS
        for repeat in range(repeats):
            if repeat and time.perf_counter() > until:
                break
            _wait(device)
            begin = time.perf_counter()
            torch.mm(matrix, matrix)
            _wait(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - begin))
    return best


def step_flops(rollout: Rollout, prompts: list[str]) -> int:
    """Floating point operations of one step without decode; the step is really made.

    Matrix products, convolutions and attention are counted, element-wise work is not.
    """
    modules = rollout.world.modules().values()
    learning = [p for module in modules for p in module.parameters() if p.requires_grad]
    counter = FlopCounterMode(display=False, custom_mapping=cpu_attention_flops())
    try:
        for parameter in learning:  # the counter wants to follow gradients, and a step has none
            parameter.requires_grad_(False)
        with counter:
            rollout.step(prompts)
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops())


def cpu_attention_flops() -> dict[Any, Any]:
    """torch's counter knows the GPU forms of fused attention only; the CPU's costs the same."""

    def flops(q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> int:
        return int(sdpa_flop_count(q, k, v))

    return {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: flops}


def _timed_step(rollout: Rollout, prompts: list[str], *, decode: bool) -> float:
    """Seconds of one step of all slots, until its result is there."""
    begin = time.perf_counter()
    chunk = rollout.step(prompts)
    if decode:
        chunk.frames.cpu()
    _wait(rollout.device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine() -> str:
    """One line on the machine that the times come from."""
    return (
        f"{os.cpu_count()} CPU cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
