"""What `magi-world bench kernels` measures: attention, its dispatch, and the fused operations."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from magi_world.evaluation.attention_bench import (
    Say,
    bench_attention_cpu,
    bench_attention_gpu,
    median_seconds,
)
from magi_world.evaluation.bench import machine, matmul_peak
from magi_world.kernels.attention import AttnSlices, attention
from magi_world.kernels.attention.sdpa import prepared
from magi_world.kernels.device import chosen
from magi_world.kernels.fp8 import available, matmul, quantise
from magi_world.kernels.fp8.triton_ops import refuses as fp8_refuses
from magi_world.kernels.modulate import gate_norm_residual
from magi_world.kernels.rope import norm_rotary, norm_rotary_write
from magi_world.kernels.rope.write import CacheRows, Norm
from magi_world.kernels.swiglu import silu_multiply

# Shape suffixes: T tokens, E hidden width, H heads, D head width.

CPU_FUSED, GPU_FUSED = (2048, 1024, 64), (16384, 3072, 128)
"""tokens, hidden width and head width of the fused operations"""
EPS = 1e-6
ROUNDS = 40
"""rounds in which the calls of a comparison take turns"""


def bench_kernels(
    device: torch.device | None = None, *, budget: float = 3.0, say: Say = lambda text: None
) -> dict[str, Any]:
    """Measure the kernels of this machine; what it lacks is named as absent.

    Args:
        device: a GPU, or the CPU; None takes the GPU if there is one.
        budget: seconds for each measurement of attention on a CPU.
        say: takes a line of progress.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    result: dict[str, Any] = {
        "machine": machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "dispatch": bench_dispatch(),
        "attention_cpu": bench_attention_cpu(budget=budget, say=say),
        "attention_gpu": None,
    }
    if device.type == "cuda":
        peak = matmul_peak(device, torch.bfloat16, sizes=(2048, 4096, 8192))
        result["matmul_peak_tflops"] = peak / 1e12
        result["attention_gpu"] = bench_attention_gpu(device, peak_flops=peak, say=say)
    else:
        peak = matmul_peak(device, torch.float32)
        result["matmul_peak_tflops"] = peak / 1e12
    say("fused operations")
    result |= bench_fused(device)
    return result


# ---------------------------------------------------------------- what a call costs beside its work


def _best_in_turn(calls: dict[str, Callable[[], Any]], repeats: int = 50) -> dict[str, float]:
    """Microseconds of processor time of each call, the best round; the calls take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for call in calls.values():
        for _ in range(repeats):
            call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begin = time.process_time()
            for _ in range(repeats):
                call()
            best[name] = min(best[name], (time.process_time() - begin) / repeats * 1e6)
    return best


_EMPTY = torch.library.Library("magi_world_bench", "FRAGMENT")
_SCHEMA = (
    "(Tensor q, Tensor k, Tensor v, Tensor? sink, SymInt mask, float scale, float softcap, "
    "bool deterministic, str backend) -> (Tensor, Tensor)"
)


def _empty_operations() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """An operation that does nothing, as ``Library`` with autograd and as ``custom_op``."""

    def nothing(q: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(q), q.new_empty(q.shape[:2])

    class Empty(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            with torch._C._AutoDispatchBelowAutograd():
                out = torch.ops.magi_world_bench.empty.default(*arguments)
            ctx.save_for_backward(*arguments[:3])
            return out

    def with_autograd(*arguments: Any) -> Any:
        return Empty.apply(*arguments)  # type: ignore[no-untyped-call]

    if not hasattr(torch.ops.magi_world_bench, "empty"):
        _EMPTY.define(f"empty{_SCHEMA}")
        _EMPTY.impl("empty", nothing, "CompositeExplicitAutograd")
        _EMPTY.impl("empty", with_autograd, "Autograd")
        _custom_op()
    ops = torch.ops.magi_world_bench
    return ops.empty.default, ops.empty_custom.default


def _custom_op() -> None:
    @torch.library.custom_op("magi_world_bench::empty_custom", mutates_args=())
    def empty_custom(
        q: Tensor, k: Tensor, v: Tensor, mask: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        return torch.empty_like(q), q.new_empty(q.shape[:2])


def bench_dispatch() -> dict[str, float]:
    """Microseconds that a call costs on a CPU when there is nothing to do: its mask has no cells.

    ``eager`` is a call without gradients, beside ``empty_custom_op``; ``registered`` is the
    registered operation with gradients, beside ``empty_library``, an operation of the same
    signature that does nothing. The first two are without ``backend``, what the backend itself
    takes to fill two results, the empty ones without ``results``, which is what making theirs
    takes; the ratios are of what is left, and ``…_whole`` of the calls as they are.
    """
    q, k, v = (torch.randn(16, 2, 16) for _ in range(3))
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    mask = AttnSlices.from_list([])
    library, custom = _empty_operations()
    operation = torch.ops.magi_world.attention.default
    tail = (None, mask.handle, 0.25, 0.0, False, "auto")
    kernel, settings, read = prepared(q, k, v, mask, 0.25)
    best = _best_in_turn(
        {
            "backend": lambda: kernel.forward(*read, None, settings),
            "results": lambda: (torch.empty_like(q), q.new_empty(q.shape[:2])),
            "eager": lambda: attention(q, k, v, mask),
            "empty_custom_op": lambda: custom(q, k, v, 1, 0.25),
            "registered": lambda: operation(*leaves, *tail),
            "empty_library": lambda: library(*leaves, *tail),
        }
    )
    mine = {name: best[name] - best["backend"] for name in ("eager", "registered")}
    empty = {name: best[name] - best["results"] for name in ("empty_custom_op", "empty_library")}
    return {
        "backend_us": best["backend"],
        "results_us": best["results"],
        "eager_us": mine["eager"],
        "empty_custom_op_us": empty["empty_custom_op"],
        "eager_ratio": mine["eager"] / empty["empty_custom_op"],
        "eager_ratio_whole": best["eager"] / best["empty_custom_op"],
        "registered_us": mine["registered"],
        "empty_library_us": empty["empty_library"],
        "registered_ratio": mine["registered"] / empty["empty_library"],
        "registered_ratio_whole": best["registered"] / best["empty_library"],
    }


# ---------------------------------------------------------------- fused operations


def bench_fused(device: torch.device) -> dict[str, Any]:
    """GB/s of the fused operations, every input read once and every output written once.

    ``of_copy`` relates them to a copy of the machine, ``form`` says what ran. The FP8 product is
    bound by its operations, not by what it moves.
    """
    on_gpu = device.type == "cuda"
    T, E, D = GPU_FUSED if on_gpu else CPU_FUSED
    dtype, H = (torch.bfloat16 if on_gpu else torch.float32), E // D
    budget = 0.5
    megabytes = 256 if on_gpu else 64
    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = median_seconds(lambda: target.copy_(source), device, budget=budget)
    copy = 2 * source.numel() / seconds / 1e9

    def made(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    wide = torch.float32
    x, branch, gate = made(T, E), made(T, E, dtype=wide), made(8, E)
    weight, bias = made(E, dtype=wide), made(E, dtype=wide)
    q, k, v = made(T, H, D), made(T, H, D), made(T, H, D)
    norm = Norm(made(D, dtype=wide), made(D, dtype=wide))
    angles = made(T, 3 * (D // 8), dtype=wide)
    rotary = angles.cos(), angles.sin()
    cache = CacheRows(torch.empty_like(k), torch.empty_like(v), torch.arange(T, device=device))
    h, scale = made(T, 2 * E), torch.ones(E, device=device)
    calls: dict[str, tuple[Callable[[], Any], list[Tensor]]] = {
        "gate, norm, residual": (
            lambda: gate_norm_residual(x, branch, gate, weight, bias, EPS), [x, branch, gate, x]
        ),
        "norm, rotary": (lambda: norm_rotary(q, *norm, *rotary, EPS), [q, *rotary, q]),
        "norm, rotary, cache": (
            lambda: norm_rotary_write(q, k, v, (norm, norm), rotary, EPS, cache),
            [q, k, v, *rotary, q, k, v],
        ),
        "SiLU, multiply": (lambda: silu_multiply(h), [h, x]),
    }  # fmt: skip
    rows = []
    with torch.no_grad():
        for name, (call, moved) in calls.items():
            size = sum(tensor.numel() * tensor.element_size() for tensor in moved)
            rows.append(_bandwidth(name, chosen("auto", x), call, size, copy, device, budget))
        if not on_gpu or torch.cuda.get_device_capability(device) >= (8, 9):
            q8, w8 = quantise(x, scale), quantise(made(E, E), scale)
            ones = torch.ones(1, device=device), torch.ones(1, device=device)
            size, bytes_x = x.numel(), x.numel() * x.element_size()
            form = "reference" if fp8_refuses(device, dtype) else "triton"
            fp8: dict[str, tuple[str, Callable[[], Any], int]] = {
                "FP8 quantise": (form, lambda: quantise(x, scale), size + bytes_x),
                "FP8 product": (
                    available(q8, w8, dtype)[0], lambda: matmul(q8, w8, ones, dtype),
                    size + w8.numel() + bytes_x,
                ),
            }  # fmt: skip
            for name, (form, call, moved_bytes) in fp8.items():
                rows.append(_bandwidth(name, form, call, moved_bytes, copy, device, budget))
        else:
            rows += [
                {"operation": name, "absent": "the card has no FP8 units"}
                for name in ("FP8 quantise", "FP8 product")
            ]
    return {"copy_gb_s": copy, "fused": rows, "fused_shape": {"tokens": T, "width": E, "head": D}}


def _bandwidth(
    name: str,
    form: str,
    call: Callable[[], Any],
    size: int,
    copy: float,
    device: torch.device,
    budget: float,
) -> dict[str, Any]:
    speed = size / median_seconds(call, device, budget=budget) / 1e9
    return {"operation": name, "form": form, "gb_s": speed, "of_copy": speed / copy}
