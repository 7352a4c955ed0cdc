"""What the time of a step goes into, by torch's profiler."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from magi_world.sampling.rollout import Rollout

GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": ("scaled_dot_product", "flash_attention", "softmax"),
    "matmul": ("mm", "matmul", "linear", "convolution", "conv"),
    "norms": ("norm", "var_mean", "rsqrt"),
    "copies": (
        "copy_", "cat", "clone", "index", "gather", "scatter", "repeat", "contiguous", "stack",
        "fill_", "zero_", "_to_copy", "memcpy", "memset",
    ),
}  # fmt: skip
"""parts of operators' names, by the group that they belong to; the first that fits decides"""


def group_of(operator: str) -> str:
    """The group of an operator such as `aten::addmm`, or "rest" (element-wise work, views, …)."""
    name = operator.lower().removeprefix("aten::")
    for group, parts in GROUPS.items():
        if any(part in name for part in parts):
            return group
    return "rest"


def profile_steps(rollout: Rollout, prompts: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Profile steps with latents only, one for each row of prompts after the first, unread one.

    `shares` are parts of the operators' own time: `matmul`, `attention`, `norms`, `copies` and
    `rest`, which is what works element by element. `outside_operators` is the share of the wall
    time in which no operator ran on the CPU: Python, other programs on a busy machine, and the
    profiler itself, which makes small operators look larger than they are. `top` names the ten
    operators with most time of their own.

    On a GPU the operators' time is that of the device, and `outside_operators` is None.
    """
    on_gpu = rollout.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    rollout.step(prompts[0])
    with profile(activities=activities) as recorded:
        begin = time.perf_counter()
        for row in prompts[1:]:
            rollout.step(row)
        if on_gpu:
            torch.cuda.synchronize(rollout.device)
        seconds = time.perf_counter() - begin
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    own = [(entry.key, getattr(entry, field) / 1e6) for entry in recorded.key_averages()]
    return {"steps": len(prompts) - 1, **summarise(own, seconds, on_gpu=on_gpu)}


def summarise(
    operators: Iterable[tuple[str, float]], seconds: float, *, on_gpu: bool = False
) -> dict[str, Any]:
    """Shares of groups and the largest operators, from (name, seconds of its own) pairs."""
    operators = sorted(operators, key=lambda entry: -entry[1])
    total = sum(spent for _, spent in operators)
    shares = dict.fromkeys((*GROUPS, "rest"), 0.0)
    for name, spent in operators:
        shares[group_of(name)] += spent / total if total else 0.0
    return {
        "shares": shares,
        "outside_operators": None if on_gpu else max(0.0, 1 - total / seconds),
        "top": [
            {"operator": name, "share": spent / total} for name, spent in operators[:10] if spent
        ],
    }
