"""Kind `schedule`: the package's schedules in the words of the golden format (section 6)."""

from typing import Any

from magi_world.sampling import schedule
from magi_world.sampling.pipeline import DenoiseStep, ModelCall, SamplingPlan
from tests.golden.cases import Case, Computed

_PROMPT_TOKENS = 7  # valid caption tokens in `sampler_tables`
_NULL_TOKENS = 50  # valid rows of the null caption (section 5)


def run_schedule(case: Case) -> Computed:
    """Time grids, window stages and the control flow of the sampler (section 6)."""
    meta = case.meta
    values: dict[str, Any] = {}
    if "timesteps" in meta:
        values["timesteps"] = [_timesteps(entry) for entry in meta["timesteps"]]
    if "sequences" in meta:
        values["sequences"] = [_sequence(entry) for entry in meta["sequences"]]
    if "tables" in meta:
        values["tables"] = [_table(entry) for entry in meta["tables"]]
    return Computed(values=values)


def _timesteps(entry: dict[str, Any]) -> dict[str, Any]:
    num_steps, mode = entry["num_steps"], entry["shortcut_mode"]
    config = entry["t_schedule_config"]
    return {
        "t": schedule.time_grid_from_config(num_steps, config, shortcut_mode=mode),
        "interval": schedule.step_intervals(num_steps, mode),
    }


def _sequence(entry: dict[str, Any]) -> dict[str, Any]:
    columns = zip(
        *schedule.stages(entry["chunk_num"], entry["window_size"], offset=entry["chunk_offset"]),
        strict=True,
    )
    return dict(zip(("clip_start", "clip_end", "t_start", "t_end"), columns, strict=True))


def _table(entry: dict[str, Any]) -> dict[str, Any]:
    prefix = entry["prefix_latent_frames"] or 0
    plan = SamplingPlan(
        num_chunks=schedule.count_chunks(
            entry["num_frames"], chunk_width=entry["chunk_width"], prefix_latent_frames=prefix
        ),
        num_steps=entry["num_steps"],
        window=entry["window_size"],
        chunk_width=entry["chunk_width"],
        prefix_latent_frames=prefix,
        kv_ranges=tuple(entry["noise2clean_kvrange"]),
        clean_kv_range=entry["clean_chunk_kvrange"],
        clean_t=entry["clean_t"],
        near_clean_threshold=entry["distill_nearly_clean_chunk_threshold"],
        shortcut_mode=entry["shortcut_mode"],
    )
    rows, columns = entry["latent_hw"]
    tokens = plan.chunk_width * (rows // 2) * (columns // 2)
    prefix_call = plan.prefix_call()
    return {
        "chunk_num": plan.num_chunks,
        "chunk_offset": plan.offset,
        "total_forward_steps": plan.total_steps,
        "prefix_extraction": _call(plan, prefix_call, tokens) if prefix_call else None,
        "steps": [_step(plan, step, tokens) for step in plan.steps()],
    }


def _step(plan: SamplingPlan, step: DenoiseStep, tokens: int) -> dict[str, Any]:
    emitted = step.emitted
    return {
        "step": step.index,
        "stage": step.stage_index,
        "denoise_idx": step.step_in_stage,
        "chunk_start": step.stage.first,
        "chunk_end": step.stage.stop,
        "t_start": step.stage.noise_first,
        "t_end": step.stage.noise_stop,
        "delta_t": step.delta_t,
        "denoise_step_of_each_chunk": step.time_indices,
        "emitted": emitted
        and {
            "chunk_index": emitted.index,
            "frame_ids": _frame_ids(emitted.first, emitted.stop, plan.prefix_latent_frames),
        },
        "forward": _call(plan, step.call, tokens),
    }


def _call(plan: SamplingPlan, call: ModelCall, tokens: int) -> dict[str, Any]:
    first, stop = call.first * plan.chunk_width, call.stop * plan.chunk_width
    lengths = [_PROMPT_TOKENS if prompted else _NULL_TOKENS for prompted in call.prompted]
    return {
        "extract_prefix": call.extract_prefix,
        "slice_point": call.first,
        "range_num": call.stop,
        "denoising_range_num": call.num_chunks,
        "fwd_extra_1st_chunk": call.extra_clean_chunk,
        "near_clean": call.near_clean,
        "distill_interval": call.interval,
        "t": call.t,
        "kv_range": call.kv_range(tokens),
        "mask_lengths": lengths + [_NULL_TOKENS] * call.num_chunks,
        "x_frame_ids": _frame_ids(first, stop, first + call.prefix_latent_frames),
    }


def _frame_ids(first: int, stop: int, prefix_stop: int) -> list[int]:
    """Noise frame i is written i, prefix frame j is -1-j."""
    return [-1 - frame if frame < prefix_stop else frame for frame in range(first, stop)]
