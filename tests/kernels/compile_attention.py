"""Compiles the attention kernels for GPUs that are not there; a program of its own.

It must not share a process with triton's interpreter. Prints one JSON line for each kernel and
case: target, width, dtype, matrix instructions and bytes of registers that spill. A case is a head
width, a dtype and 1 if there is a softcap. The forward has a sink, which takes some registers more.

    python compile_attention.py 90 64,float16,0 24,float32,1
"""

import json
import sys
from typing import Any

import torch

from magi_world.kernels.attention import triton_kernels
from magi_world.kernels.attention.triton_ops import tile_config
from tests.kernels.gpu_compiler import POINTERS, SHARED, compile_kernel

LISTS = ("slices", "starts", "splits", "ends", "tiles", "owners", "order")


def signature(function: Any, dtype: str) -> dict[str, str]:
    """Types of the arguments of a kernel but the constants."""
    types = {}
    for name in function.arg_names:
        if name.isupper() and name not in ("Tq", "Tk", "H"):
            continue
        if name in LISTS:
            types[name] = "*i32"
        elif name in ("sink", "lse", "delta"):
            types[name] = "*fp32"
        elif name in ("scale", "cap"):
            types[name] = "fp32"
        elif name.startswith("stride") or name in ("Tq", "Tk", "H"):
            types[name] = "i32"
        else:
            types[name] = POINTERS[dtype]
    return types


def main(target: int, width: int, dtype: str, capped: bool) -> None:
    """Compile all three kernels with the tile sizes that are chosen for a target."""
    kernels = {"forward": "attention_forward", "dq": "attention_dq", "dkv": "attention_dkv"}
    for kernel, name in kernels.items():
        function = getattr(triton_kernels, name)
        config = tile_config(kernel, width, getattr(torch, dtype), target, capped=capped)
        constants = {
            "SHARE": 2, "D": width, "BM": config.rows, "BN": config.keys,
            "BD": max(16, 1 << (width - 1).bit_length()), "SINK": True, "CAPPED": capped,
            "PRECISION": "ieee",
        }  # fmt: skip
        types = signature(function, dtype)
        constants = {key: value for key, value in constants.items() if key in function.arg_names}
        compiled = compile_kernel(
            function, target, types, constants, warps=config.warps, stages=config.stages,
            aligned=tuple(key for key in types if key.startswith("stride")),
        )  # fmt: skip
        row = {
            "kernel": kernel, "target": target, "width": width, "dtype": dtype, "capped": capped,
            "matrix": compiled.matrix, "newest": compiled.newest, "spilled": compiled.spilled,
            "shared": compiled.shared, "limit": SHARED[target] * 1024, "warps": config.warps,
        }  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    for case in sys.argv[2:]:
        width, dtype, capped = case.split(",")
        main(int(sys.argv[1]), int(width), dtype, capped == "1")
