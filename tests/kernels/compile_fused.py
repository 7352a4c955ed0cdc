"""Compiles the fused kernels and the FP8 kernels for GPUs that are not there; see gpu_compiler.

Prints one JSON line for each kernel. FP8 kernels are left out below sm_89.

    python compile_fused.py 90
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from magi_world.kernels.fp8 import triton_kernels as fp8
from magi_world.kernels.fp8.triton_ops import BLOCK, LEAST_CAPABILITY, matmul_config
from magi_world.kernels.modulate import triton_kernels as modulate
from magi_world.kernels.modulate.triton_ops import launch_shape as modulate_shape
from magi_world.kernels.rope import triton_kernels as rope
from magi_world.kernels.rope.triton_ops import launch_shape as rope_shape
from magi_world.kernels.swiglu import triton_kernels as swiglu
from magi_world.kernels.swiglu.triton_ops import BLOCK as SILU_BLOCK
from tests.kernels.gpu_compiler import POINTERS, compile_kernel

HALF, FLOAT, NUMBER = POINTERS["bfloat16"], POINTERS["float32"], "i32"


def kernels(target: int) -> Iterator[tuple[str, Any, dict[str, str], dict[str, Any], int, int]]:
    """Name, kernel, types, constants, warps and stages of everything that a target runs.

    Widths are those of MAGI-1: hidden 3072 and 6144, heads of 128 with 48 rotated pairs.
    """
    for width in (3072, 6144):
        rows, padded, warps = modulate_shape(width)
        types = {"x": HALF, "branch": FLOAT, "gate": HALF, "weight": FLOAT, "bias": FLOAT}
        constants: dict[str, Any] = {"E": width, "BE": padded, "ROWS": rows}
        types |= {"out": HALF, "eps": "fp32"}
        yield f"modulate {width}", modulate.gate_norm_residual_kernel, types, constants, warps, 3
    for name in ("silu_multiply_kernel", "silu_multiply_backward_kernel"):
        types = {"h": HALF, "out": HALF, "d_out": HALF, "d_h": HALF}
        yield name, getattr(swiglu, name), types, {"BLOCK": SILU_BLOCK}, 4, 3
    rows, padded = rope_shape(128)
    constants = {"R": 48, "D": 128, "BD": padded, "ROWS": rows}
    for name in ("norm_rotary_kernel", "norm_rotary_write_kernel"):
        halves = ("x", "q", "k", "v", "out", "keys", "values")
        wides = ("weight", "bias", "q_weight", "q_bias", "k_weight", "k_bias", "cos", "sin")
        types = dict.fromkeys(halves, HALF) | dict.fromkeys(wides, FLOAT)
        types |= {"rows": POINTERS["int64"], "eps": "fp32"}
        yield name, getattr(rope, name), types, constants, 4, 3
    if target < LEAST_CAPABILITY:
        return
    types = {"x": HALF, "scale": FLOAT, "out": POINTERS["float8"]}
    constants = {"PER_CHANNEL": True, "BLOCK": BLOCK}
    yield "fp8 quantise", fp8.quantise_kernel, types, constants, 4, 3
    for rows in (16, 4096):
        config = matmul_config(rows, target)
        types = dict.fromkeys(("q", "w"), POINTERS["float8"])
        types |= {"scale_q": FLOAT, "scale_w": FLOAT, "out": HALF}
        constants = {"BM": config.rows, "BN": config.columns, "BK": config.inner, "GROUP": 8}
        name = f"fp8 matmul {rows}"
        yield name, fp8.scaled_matmul_kernel, types, constants, config.warps, config.stages


def main(target: int) -> None:
    """Compile everything for a target."""
    for name, function, types, constants, warps, stages in kernels(target):
        numbers = [key for key in function.arg_names if key not in (*types, *constants)]
        types = {key: kind for key, kind in types.items() if key in function.arg_names}
        compiled = compile_kernel(
            function, target, types | dict.fromkeys(numbers, NUMBER), constants,
            warps=warps, stages=stages,
            aligned=tuple(key for key in numbers if key not in ("T", "H", "M", "tokens")),
        )  # fmt: skip
        row = {
            "kernel": name, "target": target, "matrix": compiled.matrix, "newest": compiled.newest,
            "spilled": compiled.spilled, "shared": compiled.shared,
            "float8": "e4m3" in compiled.ptx or "kind::f8f6f4" in compiled.ptx,
        }  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
