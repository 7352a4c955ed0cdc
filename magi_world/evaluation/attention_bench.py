"""Speed and memory of attention: our backends beside torch's own, on one machine in one run.

On a CPU the mask is the issue's block-causal one, beside SDPA with a dense mask. On a GPU it is
six masks from 4k to 64k tokens. Operations are those of the cells that a mask has: 4 * cells * H *
D forwards, 2.5 times that backwards.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from magi_world.evaluation.peak_memory import peak_bytes
from magi_world.kernels.attention import AttnSlices, attention, builders

# Shape suffixes: T tokens, H heads, D head width.

Say = Callable[[str], None]
CPU_TOKENS, CPU_HEADS, CPU_WIDTH, CPU_CHUNKS = 4096, 8, 64, 8
GPU_HEADS, GPU_KEY_HEADS, GPU_WIDTH = 16, 16, 128
GPU_TOKENS = (4096, 8192, 16384, 32768, 65536)
CPU_BACKENDS = ("cpu", "sdpa", "flex")
GPU_BACKENDS = ("triton", "flash4", "flex")
FA_CLASS = ("sdpa flash", "cudnn", "flash4")
DENSE = "sdpa with a dense mask"


class Timing(NamedTuple):
    """Seconds of one call, the median of several."""

    forward: float
    backward: float | None
    """None where there is no backward"""


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(call: Callable[[], Any], device: torch.device, *, budget: float) -> float:
    """Median time of a call, repeated for some seconds and at least three times."""
    call()
    seconds: list[float] = []
    until = time.perf_counter() + budget
    while len(seconds) < 3 or (time.perf_counter() < until and len(seconds) < 50):
        synchronise(device)
        begin = time.perf_counter()
        call()
        synchronise(device)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def block_causal_mask(tokens: int, chunks: int = CPU_CHUNKS) -> AttnSlices:
    """The mask of the goal on CPUs: equal chunks that see themselves and all before."""
    return builders.block_causal(tokens, tokens // chunks)


def gpu_masks(tokens: int) -> dict[str, AttnSlices]:
    """The masks of the table on GPUs."""
    block = tokens // 8
    lengths = [tokens // 2, tokens // 4, tokens // 4]
    return {
        "full": builders.full(tokens),
        "causal": builders.causal(tokens),
        "block-causal": builders.block_causal(tokens, block),
        "sliding window": builders.sliding_window(tokens, 1024),
        "varlen block-causal": builders.varlen(lengths, block=max(1, block // 4)),
        # a window of four chunks over four clean ones
        "MAGI window": builders.video_window(4, 4, block, 5),
    }


def attention_calls(
    mask: AttnSlices, name: str, tokens: int
) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """A form of attention under a mask; None where it cannot express the mask."""
    if name == DENSE:
        from magi_world.kernels.attention.reference import dense_mask

        dense = dense_mask(mask, tokens, tokens)

        def with_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=dense)
            return out[0].transpose(0, 1)

        return with_mask
    if name in ("sdpa flash", "cudnn"):
        return _torch_fused(mask, name, tokens)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, mask, backend=name)[0]  # type: ignore[arg-type]

    return ours


def _torch_fused(
    mask: AttnSlices, name: str, tokens: int
) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    """torch's fused kernels, which know full and causal masks only."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    whole = [((0, tokens, 0, tokens, kind),) for kind in (0, 1)]
    if mask.rows not in whole:
        return None
    causal = mask.rows[0][4] == 1
    kernel = SDPBackend.FLASH_ATTENTION if name == "sdpa flash" else SDPBackend.CUDNN_ATTENTION

    def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
        with sdpa_kernel(kernel):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return out[0].transpose(0, 1)

    return fused


def timed(
    call: Callable[[Tensor, Tensor, Tensor], Tensor],
    shape_THD: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    *,
    budget: float,
    backward: bool = True,
    queries: int | None = None,
) -> Timing:
    """Time the forward without gradients, then forward and backward less the forward.

    There are as many queries as keys, or ``queries``.
    """
    leaves, d_out = _drawn(shape_THD, device, dtype, backward=backward, queries=queries)
    with torch.no_grad():
        forward = median_seconds(lambda: call(*leaves), device, budget=budget)
    if not backward:
        return Timing(forward, None)

    def both() -> None:
        torch.autograd.grad(call(*leaves), leaves, d_out)

    with_gradients = median_seconds(lambda: call(*leaves), device, budget=budget / 2)
    return Timing(forward, median_seconds(both, device, budget=budget) - with_gradients)


def _drawn(
    shape_THD: tuple[int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    *,
    backward: bool,
    queries: int | None = None,
) -> tuple[list[Tensor], Tensor]:
    """Queries, keys and values, and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    T, H, D = shape_THD
    tokens = [T if queries is None else queries, T, T]
    leaves = [
        torch.randn(n, H, D, generator=generator).to(device, dtype).requires_grad_(backward)
        for n in tokens
    ]
    return leaves, torch.randn(tokens[0], H, D, generator=generator).to(device, dtype)


def timed_in_turns(
    calls: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]],
    shape_THD: tuple[int, int, int],
    *,
    budget: float,
) -> dict[str, Timing]:
    """Time calls on the CPU that take turns, so that other programs hit all of them alike.

    Args:
        calls: what is timed, forward without gradients and backward.
        shape_THD: of queries, keys and values.
        budget: seconds for each call; everyone has three turns at least.
    """
    leaves, d_out = _drawn(shape_THD, torch.device("cpu"), torch.float32, backward=True)
    forward: dict[str, list[float]] = {name: [] for name in calls}
    backward: dict[str, list[float]] = {name: [] for name in calls}
    turns, until = 0, 0.0
    while turns < 4 or time.perf_counter() < until:
        for name, call in calls.items():
            begin = time.perf_counter()
            with torch.no_grad():
                call(*leaves)
            forward[name].append(time.perf_counter() - begin)
            out = call(*leaves)
            begin = time.perf_counter()
            torch.autograd.grad(out, leaves, d_out)
            backward[name].append(time.perf_counter() - begin)
        turns += 1
        if turns == 1:  # it made masks and plans
            until = time.perf_counter() + budget * len(calls)
    return {
        name: Timing(statistics.median(forward[name][1:]), statistics.median(backward[name][1:]))
        for name in calls
    }


def bench_attention_cpu(*, budget: float = 3.0, say: Say = lambda text: None) -> dict[str, Any]:
    """Our CPU backends beside SDPA with a dense mask; what cannot run is said so.

    ``speedup`` is the dense form's time over this one's, ``ceiling`` what skipping alone can give.
    """
    T, shape = CPU_TOKENS, (CPU_TOKENS, CPU_HEADS, CPU_WIDTH)
    mask, device = block_causal_mask(CPU_TOKENS), torch.device("cpu")
    calls = {}
    for name in (DENSE, *CPU_BACKENDS):
        call = attention_calls(mask, name, T)
        assert call is not None
        calls[name] = call
    # FlexAttention has no backward on a CPU and is slow without compilation
    flex = calls.pop("flex")
    say(f"attention on the CPU, in turns: {', '.join(calls)}")
    times = timed_in_turns(calls, shape, budget=budget)
    dense = times[DENSE]
    rows: list[dict[str, Any]] = []
    for name, time_ in times.items():
        assert time_.backward is not None and dense.backward is not None
        rows.append({
            "backend": name,
            "forward_ms": time_.forward * 1e3, "forward_speedup": dense.forward / time_.forward,
            "backward_ms": time_.backward * 1e3,
            "backward_speedup": dense.backward / time_.backward,
        })  # fmt: skip
    say("attention on the CPU: flex")
    try:
        alone = timed(flex, shape, device, torch.float32, budget=budget, backward=False).forward
    except (RuntimeError, ValueError, NotImplementedError, ImportError) as error:
        rows.append({"backend": "flex", "absent": _line(error)})
    else:
        speedup = dense.forward / alone
        rows.append({"backend": "flex", "forward_ms": alone * 1e3, "forward_speedup": speedup})
    return {
        "tokens": T, "heads": CPU_HEADS, "width": CPU_WIDTH, "chunks": CPU_CHUNKS,
        "ceiling": T * T / mask.area(), "rows": rows,
        "memory": [
            memory_growth(name, title)
            for title in MEMORY_MASKS for name in (DENSE, "reference", "cpu", "sdpa")
        ],
    }  # fmt: skip


MEMORY_MASKS: dict[str, Callable[[int], AttnSlices]] = {
    "block-causal": block_causal_mask,
    "causal": builders.causal,
    "sliding window": lambda tokens: builders.sliding_window(tokens, tokens // 4),
    # rows of many small blocks that share most of their keys
    "narrow blocks": lambda tokens: builders.block_causal(tokens, 16, window=tokens // 64),
}
"""masks whose memory is measured, for a number of tokens"""


def memory_growth(
    name: str, mask: str = "block-causal", tokens: int | None = None, *, backward: bool = False
) -> dict[str, Any]:
    """Peak memory of the first call under a mask at T / 2 and at T tokens; 4 is T squared.

    Args:
        name: a form of attention.
        mask: one of :data:`MEMORY_MASKS`.
        tokens: T, those of the table on CPUs by default.
        backward: with gradients of queries, keys and values.
    """
    tokens = CPU_TOKENS if tokens is None else tokens
    peaks = []
    for T in (tokens // 2, tokens):
        leaves = [torch.randn(T, 2, CPU_WIDTH, requires_grad=backward) for _ in range(3)]
        slices = MEMORY_MASKS[mask](T)

        def once(leaves: list[Tensor] = leaves, slices: AttnSlices = slices, T: int = T) -> None:
            call = attention_calls(slices, name, T)
            assert call is not None
            with torch.set_grad_enabled(backward):
                out = call(*leaves)
                if backward:
                    torch.autograd.grad(out.sum(), leaves)

        peaks.append(peak_bytes(once))
    half, whole = peaks
    return {
        "backend": name, "mask": mask, "tokens": tokens, "half_mib": half / 2**20,
        "mib": whole / 2**20, "growth": whole / half,
    }  # fmt: skip


def bench_attention_gpu(
    device: torch.device,
    *,
    peak_flops: float,
    tokens: Sequence[int] = GPU_TOKENS,
    budget: float = 0.1,
    say: Say = lambda text: None,
) -> list[dict[str, Any]]:
    """TFLOP/s and share of the matmul peak for every mask, length and implementation.

    ``of_fa`` relates a row to the fastest of SDPA's flash and cuDNN kernels and flash-attn-4, where
    they run, on the full mask of the same length: the FA class of this machine.
    """
    rows: list[dict[str, Any]] = []
    for T in tokens:
        shape = (T, GPU_HEADS, GPU_WIDTH)
        for title, mask in gpu_masks(T).items():
            flops = 4.0 * mask.area() * GPU_HEADS * GPU_WIDTH
            for name in ("sdpa flash", "cudnn", *GPU_BACKENDS):
                say(f"attention on the GPU: {title}, {T} tokens, {name}")
                row: dict[str, Any] = {"mask": title, "tokens": T, "backend": name}
                rows.append(row)
                call = attention_calls(mask, name, T)
                if call is None:
                    row["absent"] = "full and causal masks only"
                    continue
                try:
                    time_ = timed(
                        call, shape, device, torch.bfloat16, budget=budget,
                        queries=mask.extent()[0],
                    )  # fmt: skip
                except Exception as error:  # a GPU package may fail in any way
                    row["absent"] = _line(error)
                    continue
                assert time_.backward is not None
                row["forward_tflops"] = flops / time_.forward / 1e12
                row["backward_tflops"] = 2.5 * flops / time_.backward / 1e12
                row["forward_peak_share"] = flops / time_.forward / peak_flops
                row["backward_peak_share"] = 2.5 * flops / time_.backward / peak_flops
    _relate(rows)
    return rows


def _relate(rows: list[dict[str, Any]]) -> None:
    """Put every speed beside the FA class of its length."""
    for row in rows:
        same = [r for r in rows if r["tokens"] == row["tokens"] and r["mask"] == "full"]
        for way in ("forward", "backward"):
            key = f"{way}_tflops"
            classes = [r[key] for r in same if r["backend"] in FA_CLASS and key in r]
            if key in row and classes:
                row[f"{way}_of_fa"] = row[key] / max(classes)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
