"""Time and memory of the DiT alone: one denoising step, one chunk, and what each saving is worth.

All variants make the same video from the same weights. They take turns step by step, so that what
else the machine does hits all of them alike.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from statistics import fmean
from typing import Any

import torch

from magi_world.config import DiTConfig
from magi_world.evaluation.bench import Say, matmul_peak
from magi_world.evaluation.dit_case import DiTCase, RandomSource, random_caption, random_dit
from magi_world.evaluation.peak_memory import peak_bytes
from magi_world.models.dit import VideoDiT
from magi_world.planning.checks import check_memory
from magi_world.planning.flops import caption_flops, caption_projection_flops
from magi_world.planning.memory import dit_weights, kv_bytes
from magi_world.sampling.model_passes import ModelPasses
from magi_world.sampling.settings import SamplerConfig, Savings
from magi_world.sampling.window import WindowSampler

CAPTION_TOKENS = 128
"""tokens of the caption: two or three sentences"""


@dataclass
class _Variant:
    """One way of making the video, and what it took."""

    name: str
    savings: Savings
    compat: bool = False
    passes: ModelPasses = field(default_factory=ModelPasses)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    step_flops: list[int] = field(default_factory=list)
    step_chunks: list[int] = field(default_factory=list)

    def sampler(self, case: DiTCase, num_steps: int | None = None) -> SamplerConfig:
        """How it samples."""
        return case.sampler(self.savings, compat=self.compat, num_steps=num_steps)


def variants(case: DiTCase) -> list[tuple[str, Savings, bool]]:
    """Names, savings and compat flags: all on, each one off, all off, and as published."""
    names = [f.name for f in fields(Savings)]
    rows = [("all_on", Savings(), False)]
    rows += [(f"without_{name}", replace(Savings(), **{name: False}), False) for name in names]
    rows.append(("all_off", Savings.none(), False))
    if case.mode is not None:
        rows.append(("as_published", Savings.none(), True))
    return rows


def bench_dit(
    case: DiTCase,
    *,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    caption_tokens: int = CAPTION_TOKENS,
    seed: int = 0,
    memory: bool = True,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Make one video with every variant of the savings and measure it.

    Args:
        case: the model and how it is sampled.
        device: where; None is the CPU.
        dtype: of the mixed-precision recipe.
        caption_tokens: length of the caption.
        seed: of weights, noise and caption.
        memory: also measure the peak of memory, in a second video with the fewest steps that have
            the same shapes.
        say: told what happens.

    Returns:
        Plain data. `step` is a denoising step of the fullest window with all savings on, `chunk`
        the mean chunk of the video; `peak_share` is the counted work over time and matmul peak.
        `variants` has for each its seconds, operations and, in bytes, the peak of what was
        allocated at once, weights included. `cpu_seconds_per_chunk` is time of this process on
        all cores together, which other programs disturb less. `flops_ratio_padded` compares with
        operations that the released code spends beside `as_published`: it projects captions
        padded to their greatest length, in every chunk-pass, before it leaves the padding out.

    Raises:
        ConfigError: the model does not fit the memory.
    """
    device = torch.device("cpu") if device is None else device
    weights = dit_weights(case.dit, dtype)
    cache = kv_bytes(case.dit, case.tokens_per_chunk * (case.num_chunks + 3), dtype)
    # variants that hold the whole video, and weights in float32 before they are cast
    needed = weights.parameters * 4 + cache * len(variants(case))
    check_memory(needed, device, "random weights and caches of all variants")
    rows = [_Variant(*row) for row in variants(case)]
    for row in rows:
        row.sampler(case)  # refuses what cannot work before anything is allocated
    say(f"{weights.parameters:,} parameters, {case.num_chunks} chunks, {len(rows)} variants")
    dit = random_dit(case.dit, device, dtype, seed)
    peak = matmul_peak(device, dtype)
    _take_turns(case, dit, rows, caption_tokens, seed, say)
    peak = max(peak, matmul_peak(device, dtype))
    first = rows[0]
    sampler = first.sampler(case)
    result: dict[str, Any] = {
        "config": case.name,
        "mode": case.mode,
        "parameters": weights.parameters,
        "window": sampler.window,
        "steps": sampler.num_steps,
        "chunks": case.num_chunks,
        "tokens_per_chunk": case.tokens_per_chunk,
        "caption_tokens": caption_tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "peak_gflops": peak / 1e9,
        "step": _step(first, peak),
        "chunk": _rate(sum(first.seconds), first.passes.flops, peak, case.num_chunks),
        "flops": _per_chunk(first.passes.parts, case.num_chunks),
    }
    last = rows[-1]
    described = {}
    for row in rows:
        measured: dict[str, Any] = {
            "seconds_per_chunk": sum(row.seconds) / case.num_chunks,
            "cpu_seconds_per_chunk": sum(row.cpu_seconds) / case.num_chunks,
            "flops_per_chunk": row.passes.flops / case.num_chunks,
            "flops": _per_chunk(row.passes.parts, case.num_chunks),
            "chunk_passes": row.passes.run,
            "time_ratio": sum(row.seconds) / sum(last.seconds),
            "cpu_time_ratio": sum(row.cpu_seconds) / sum(last.cpu_seconds),
            "flops_ratio": row.passes.flops / last.passes.flops,
        }
        if case.mode is not None:
            padded = last.passes.flops + padding_flops(case.dit, last.passes)
            measured["flops_ratio_padded"] = row.passes.flops / padded
        if memory:
            say(f"memory of {row.name}")
            held = _peak(case, dit, row, caption_tokens, seed, device)
            measured["peak_bytes"] = weights.nbytes + held
        described[row.name] = measured
    result["ratios_to"] = last.name
    result["variants"] = described
    return result


def padding_flops(dit: DiTConfig, passes: ModelPasses) -> int:
    """Operations on the padding of captions in the released code, which ran these passes."""
    padded = passes.run * caption_projection_flops(dit, dit.caption_max_length)
    # the projection's share of what was counted for captions is the same at every length
    counted = passes.parts["captions"] * caption_projection_flops(dit, 1) // caption_flops(dit, 1)
    return padded - counted


def _take_turns(
    case: DiTCase, dit: VideoDiT, rows: list[_Variant], tokens: int, seed: int, say: Say
) -> None:
    """Run all variants, one denoising step of each after the other."""
    config = rows[0].sampler(case)
    total = config.num_steps // config.window * (case.num_chunks + config.window - 1)
    runs = [_run(case, dit, row, tokens, seed) for row in rows]
    begin, done = time.perf_counter(), 0
    while all([next(run, False) for run in runs]):  # a list, so that every one takes its turn
        done += 1
        say(f"step {done} of {total}, {time.perf_counter() - begin:.0f} s")


def _run(
    case: DiTCase,
    dit: VideoDiT,
    row: _Variant,
    tokens: int,
    seed: int,
    *,
    num_steps: int | None = None,
) -> Iterator[bool]:
    """Make the video; yields after every denoising step. Captions are made in the first one."""
    sampler: WindowSampler | None = None
    source: RandomSource | None = None
    steps: Iterator[Any] = iter(())
    device = next(dit.parameters()).device
    while True:
        begin, cpu, before = time.perf_counter(), time.process_time(), row.passes.flops
        with torch.inference_mode():
            if sampler is None or source is None:
                sampler, source = _begin(case, dit, row, tokens, seed, num_steps)
                steps = sampler.plan.steps()
            step = next(steps, None)
            if step is None:
                return
            sampler.denoise(step, source, None)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        row.seconds.append(time.perf_counter() - begin)
        row.cpu_seconds.append(time.process_time() - cpu)
        row.step_flops.append(row.passes.flops - before)
        row.step_chunks.append(step.stage.stop - step.stage.first)
        yield True


def _begin(
    case: DiTCase, dit: VideoDiT, row: _Variant, tokens: int, seed: int, num_steps: int | None
) -> tuple[WindowSampler, RandomSource]:
    config = row.sampler(case, num_steps)
    caption = random_caption(dit, tokens, seed)
    null = random_caption(dit, case.null_tokens, seed + 1)
    for length in (tokens, case.null_tokens):
        row.passes.add_caption(case.dit, length)
    sampler = WindowSampler(
        dit, config, size=case.size, null=null, num_chunks=case.num_chunks, passes=row.passes
    )
    return sampler, RandomSource(case, caption, seed)


def _peak(
    case: DiTCase, dit: VideoDiT, row: _Variant, tokens: int, seed: int, device: torch.device
) -> int:
    """Most bytes held at once beside the weights."""
    again = _Variant(row.name, row.savings, row.compat)

    def run() -> None:
        for _ in _run(case, dit, again, tokens, seed, num_steps=case.least_steps):
            pass

    if device.type != "cuda":
        return peak_bytes(run)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return int(torch.cuda.max_memory_allocated(device) - before)


def _step(row: _Variant, peak: float) -> dict[str, Any]:
    """A denoising step of the fullest window, the first ones left out if there are others."""
    most = max(row.step_chunks)
    full = [index for index, chunks in enumerate(row.step_chunks) if chunks == most]
    full = full[1:] or full  # the first one prepares masks and rotary tables
    seconds = fmean(row.seconds[index] for index in full)
    flops = fmean(row.step_flops[index] for index in full)
    return {"chunks": most, "measured": len(full), **_rate(seconds, flops, peak, 1)}


def _rate(seconds: float, flops: float, peak: float, count: int) -> dict[str, float]:
    return {
        "seconds": seconds / count,
        "flops": flops / count,
        "gflops_per_second": flops / seconds / 1e9,
        "peak_share": flops / seconds / peak,
    }


def _per_chunk(parts: dict[str, int], count: int) -> dict[str, float]:
    return {name: value / count for name, value in parts.items()}
