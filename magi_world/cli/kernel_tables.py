"""How `magi-world bench kernels` prints what it measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from magi_world.cli.output import emit_pairs, emit_table

_WAYS = ("forward", "backward")


def print_kernels(result: Mapping[str, Any]) -> None:
    """Print every measurement; what this machine lacks stands there as absent."""
    on_cpu, dispatch = result["attention_cpu"], result["dispatch"]
    emit_pairs(
        {
            "machine": result["machine"],
            "device": result["device"],
            "matmul peak, TFLOP/s": result["matmul_peak_tflops"],
            "copy, GB/s": result["copy_gb_s"],
        }
    )
    shape = (
        f"{on_cpu['tokens']} tokens, {on_cpu['heads']} heads of {on_cpu['width']}, "
        f"{on_cpu['chunks']} block-causal chunks"
    )
    print(f"\nattention on the CPU, float32: {shape}; skipping alone gives {on_cpu['ceiling']:.3g}")
    columns = [f"{way}_{what}" for way in _WAYS for what in ("ms", "speedup")]
    emit_table(on_cpu["rows"], _filled(on_cpu["rows"], ("backend", *columns)))
    print("\npeak memory of a forward, MiB, at half as many and at all tokens; 4 is their square")
    emit_table(on_cpu["memory"], ("mask", "backend", "tokens", "half_mib", "mib", "growth"))
    print("\nwhat a call with nothing to do costs on the CPU, microseconds")
    emit_pairs(dispatch)
    print(
        "\nattention on the GPU, bfloat16; of_fa relates it to full attention by FA-class kernels"
    )
    rows = result["attention_gpu"]
    if rows is None:
        print("absent: there is no CUDA device")
    else:
        parts = [f"{way}_{what}" for way in _WAYS for what in ("tflops", "peak_share", "of_fa")]
        emit_table(rows, _filled(rows, ("mask", "tokens", "backend", *parts)))
    sizes = result["fused_shape"]
    print(f"\nfused operations, {sizes['tokens']} tokens, width {sizes['width']}, heads of "
          f"{sizes['head']}")  # fmt: skip
    fused = result["fused"]
    emit_table(fused, _filled(fused, ("operation", "form", "gb_s", "of_copy")))


def _filled(rows: Sequence[Mapping[str, Any]], columns: tuple[str, ...]) -> tuple[str, ...]:
    """The columns, and the reasons of what is absent if there are any."""
    return (*columns, "absent") if any("absent" in row for row in rows) else columns
