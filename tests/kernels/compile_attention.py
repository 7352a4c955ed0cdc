"""Compiles the attention kernels for GPUs that are not there; a program of its own.

It must not share a process with triton's interpreter. Prints one JSON line for each kernel: target,
width, matrix instructions and bytes of registers that spill.

    python compile_attention.py 90 64 float16
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from magi_world.kernels.attention import triton_kernels
from magi_world.kernels.attention.triton_ops import tile_config

POINTERS = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}
MATRIX = {80: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma"}
LISTS = ("slices", "starts", "splits", "ends", "tiles", "owners", "order")


def signature(function: Any, dtype: str) -> dict[str, str]:
    """Types of the arguments of a kernel."""
    types = {}
    for name in function.arg_names:
        if name.isupper() and name not in ("Tq", "Tk", "H"):
            types[name] = "constexpr"
        elif name in LISTS:
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


def spilled(ptx: str, target: int) -> int:
    """Bytes that ptxas spills; the plain ptxas of the package rejects newer targets."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    name = re.search(r"\.target (\S+)", ptx)
    assert name is not None
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "kernel.ptx")
        source.write_text(ptx)
        chip = f"--gpu-name={name[1].rstrip(',')}"
        command: list[str | Path] = [folder / "ptxas-blackwell", "-v", chip, source]
        done = subprocess.run(
            [*command, "-o", Path(scratch, "out")], capture_output=True, text=True, check=True
        )
    return sum(int(n) for n in re.findall(r"(\d+) bytes spill stores", done.stdout + done.stderr))


def main(target: int, width: int, dtype: str) -> None:
    """Compile all three kernels with the tile sizes that are chosen for a target."""
    kernels = {"forward": "attention_forward", "dq": "attention_dq", "dkv": "attention_dkv"}
    for kernel, name in kernels.items():
        function = getattr(triton_kernels, name)
        config = tile_config(kernel, width, getattr(torch, dtype), target)
        constants = {
            "SHARE": 2, "D": width, "BM": config.rows, "BN": config.keys,
            "BD": max(16, 1 << (width - 1).bit_length()), "SINK": False, "CAPPED": False,
            "PRECISION": "ieee",
        }  # fmt: skip
        types = signature(function, dtype)
        constants = {key: value for key, value in constants.items() if key in types}
        # what the launcher finds out for itself: addresses and strides are multiples of 16
        aligned = {
            (i,): [["tt.divisibility", 16]]
            for i, (key, kind) in enumerate(types.items())
            if kind.startswith("*") or key.startswith("stride")
        }
        compiled = triton.compile(
            ASTSource(fn=function, signature=types, constexprs=constants, attrs=aligned),
            target=GPUTarget("cuda", target, 32),
            options={"num_warps": config.warps, "num_stages": config.stages},
        )
        ptx = compiled.asm["ptx"]
        row = {
            "kernel": kernel, "target": target, "width": width, "dtype": dtype,
            "matrix": ptx.count(MATRIX[target]), "spilled": spilled(ptx, target),
            "shared": compiled.metadata.shared, "warps": config.warps,
        }  # fmt: skip
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
