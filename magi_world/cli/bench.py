"""The verb `bench`: memory, speed and latency of a world, and its kernels, on this machine."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from magi_world.cli.measuring import parse_counts
from magi_world.cli.output import emit_json, emit_pairs, emit_table, say
from magi_world.cli.worlds import AsJson, Device, DType, Steps

# torch's profiler tells of every start and stop on stderr; read when it first runs
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

app = typer.Typer(help="Measure a world on this machine.", rich_markup_mode=None)

World = Annotated[str, typer.Option(help="A world's name, or a folder with one.")]
Seed = Annotated[int, typer.Option(min=0, help="Seeds noise and prompts.")]

PROFILED = 20
"""steps that are profiled"""
MAX_ENV_CHUNKS = 30
"""most chunks in which the environment's own time is told from the model's"""


@app.command("rollout")
def rollout(
    world: World = "doom-take-cover",
    chunks: Annotated[int, typer.Option(min=4, help="Chunks of one slot.")] = 5000,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Show that memory and time stay flat: the end of a long rollout beside its beginning."""
    from magi_world.evaluation.bench import bench_rollout, machine
    from magi_world.world import load

    say(machine())
    loaded = load(world, device=device, dtype=dtype)
    result = bench_rollout(loaded, chunks=chunks, seed=seed, say=say)
    if as_json:
        emit_json(result)
    else:
        emit_pairs(result)


@app.command("kernels")
def kernels(
    device: Device = None,
    budget: Annotated[
        float, typer.Option(min=0.0, help="Seconds for each measurement of attention on the CPU.")
    ] = 3.0,
    as_json: AsJson = False,
) -> None:
    """Time attention, its dispatch and the fused operations beside torch's own, in one run."""
    import torch

    from magi_world.cli.kernel_tables import print_kernels
    from magi_world.evaluation.bench import machine
    from magi_world.evaluation.kernel_bench import bench_kernels
    from magi_world.placement import check_place

    check_place(device, None)
    say(machine())
    chosen = None if device is None else torch.device(device)
    result = bench_kernels(chosen, budget=budget, say=say)
    if as_json:
        emit_json(result)
    else:
        print_kernels(result)


@app.command("env")
def env(
    world: World = "doom-take-cover",
    num_envs: Annotated[str, typer.Option(help="Numbers of slots, with commas between.")] = "1,32",
    chunks: Annotated[int, typer.Option(min=1, help="Timed chunks of each measurement.")] = 100,
    steps: Steps = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Also say what the time of a step goes into.")
    ] = False,
    fixed: Annotated[
        bool,
        typer.Option(
            "--fixed", help="Also time steps on fixed buffers: compiled, and as one CUDA graph."
        ),
    ] = False,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Time closed loops: frames a second with decode, agent steps a second with latents only.

    Beside them stand the work of a chunk, which share of the matmul peak, measured in the same run
    with the same dtype and threads, the latents-only loop reaches, and which share of a step of the
    vector environment is not the model's.
    """
    from magi_world.envs.multi_vector_env import WholeVectorEnv
    from magi_world.envs.vector_env import WorldVectorEnv
    from magi_world.evaluation.bench import bench_env, machine
    from magi_world.evaluation.fixed_bench import bench_fixed
    from magi_world.evaluation.overhead import measure_overhead
    from magi_world.players import chunk_prompts, players_of
    from magi_world.world import load

    widths = parse_counts(num_envs, "--num-envs")
    say(machine())
    rows = bench_env(
        lambda: load(world, device=device, dtype=dtype),
        widths,
        chunks=chunks,
        seed=seed,
        steps=steps,
        profiled=PROFILED if profile else 0,
        say=say,
    )
    loaded = load(world, device=device, dtype=dtype)
    names = chunk_prompts(loaded.card)
    kind = WholeVectorEnv if players_of(loaded.card) else WorldVectorEnv
    for row in rows:
        width = row["num_envs"]
        environment = kind(width, loaded, actions="discrete", steps=steps)
        count = max(5, min(chunks, MAX_ENV_CHUNKS))
        actions = [[(seed + k) % len(names)] * width for k in range(count + 1)]
        row |= measure_overhead(environment, actions, decode=True, seed=seed)
        environment.close()
        if fixed:
            say(f"{width} slots, compiled: the first chunk may take minutes")
            row |= bench_fixed(loaded, width, chunks=chunks, seed=seed, steps=steps)
    if as_json:
        emit_json(rows)
        return
    emit_table(
        rows,
        (
            "num_envs", "frames_per_s", "p50_ms", "p95_ms", "agent_steps_per_s",
            "latent_p50_ms", "latent_p95_ms", "cold_start_s", "times_real_rate", "mflop_per_chunk",
            "peak_gflops", "peak_share", "env_step_ms", "env_overhead",
            *(name for name in rows[0] if name.startswith(("compile_", "graph_"))),
            "denoising_steps", "dtype", "threads",
        ),
    )  # fmt: skip
    if profile:
        print("\nwhat the time of the operators of a step with latents goes into, as shares")
        parts = [
            {"num_envs": row["num_envs"], **row["profile"]["shares"]}
            | {"outside_operators": row["profile"]["outside_operators"]}
            for row in rows
        ]
        emit_table(parts, tuple(parts[0]))
        for row in rows:
            print(f"\nlargest operators, {row['num_envs']} slots")
            emit_table(row["profile"]["top"], ("operator", "share"))


@app.command("dit")
def dit(
    config: Annotated[
        Path | None,
        typer.Option(help="A published configuration file or a world's JSON; a default without."),
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="base or distill; the file's own by default.")
    ] = None,
    window: Annotated[int | None, typer.Option(min=1, help="Chunks denoised together.")] = None,
    steps: Steps = None,
    chunks: Annotated[
        int | None, typer.Option(min=1, help="Chunks of the video; the file's num_frames.")
    ] = None,
    caption_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the caption.")] = 128,
    memory: Annotated[bool, typer.Option(help="Also measure the peak of memory.")] = True,
    seed: Seed = 0,
    device: Device = None,
    dtype: DType = None,
    as_json: AsJson = False,
) -> None:
    """Time one denoising step and one chunk of a DiT with random weights.

    The same video is made with all savings, with each one off, with all off and in the order of the
    published code; the variants take turns step by step. Beside the times stand the counted
    operations of each part and the share of the matmul peak, measured in the same run.
    """
    import torch

    from magi_world.errors import ConfigError
    from magi_world.evaluation.bench import machine
    from magi_world.evaluation.dit_bench import bench_dit
    from magi_world.evaluation.dit_case import MODES, read_case
    from magi_world.placement import DTYPES, check_place

    if mode is not None and mode not in MODES:
        raise ConfigError(f"--mode {mode}: {' or '.join(MODES)} is needed")
    check_place(device, dtype)
    case = read_case(config, mode=mode, window=window, steps=steps, chunks=chunks)  # type: ignore[arg-type]
    if caption_tokens > case.dit.caption_max_length:
        raise ConfigError(
            f"--caption-tokens {caption_tokens}: the model takes {case.dit.caption_max_length}"
        )
    say(machine())
    result = bench_dit(
        case,
        device=torch.device(device or "cpu"),
        dtype=DTYPES[dtype or "float32"],
        caption_tokens=caption_tokens,
        seed=seed,
        memory=memory,
        say=say,
    )
    if as_json:
        emit_json(result)
        return
    _print_dit(result)


def _print_dit(result: dict[str, Any]) -> None:
    rows = result.pop("variants")
    parts = result.pop("flops")
    for name in ("step", "chunk"):
        result |= {f"{name} {key}": value for key, value in result.pop(name).items()}
    emit_pairs(result)
    print("\noperations of a chunk, GFLOP")
    emit_table([{k: v / 1e9 for k, v in parts.items()}], tuple(parts))
    print(f"\nvariants; ratios to {result['ratios_to']}")
    shown = [
        {"variant": name, **row, "gflop_per_chunk": row["flops_per_chunk"] / 1e9}
        | {"peak_mib": row["peak_bytes"] / 2**20 if "peak_bytes" in row else None}
        for name, row in rows.items()
    ]
    emit_table(
        shown,
        (
            "variant", "seconds_per_chunk", "cpu_seconds_per_chunk", "gflop_per_chunk",
            "chunk_passes", "time_ratio", "cpu_time_ratio", "flops_ratio", "flops_ratio_padded",
            "peak_mib",
        ),
    )  # fmt: skip
