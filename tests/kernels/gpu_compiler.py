"""Compiles Triton kernels for GPUs that are not there; used by programs of their own.

It must not share a process with triton's interpreter.
"""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    "float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32", "float8": "*fp8e4nv",
    "int64": "*i64", "int32": "*i32",
}  # fmt: skip
MATRIX = {
    80: "mma.sync", 89: "mma.sync", 90: "wgmma.mma_async", 100: "tcgen05.mma", 120: "mma.sync",
}  # fmt: skip
SHARED = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a program may have"""


class Compiled(NamedTuple):
    """What is asserted of a kernel."""

    ptx: str
    matrix: int
    """matrix instructions"""
    newest: int
    """those among them that are the target's own, not of the cards before it"""
    spilled: int
    """bytes of registers that spill"""
    shared: int
    """bytes of shared memory"""


def spilled(ptx: str) -> int:
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


def compile_kernel(
    function: Any,
    target: int,
    types: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    warps: int,
    stages: int = 3,
    aligned: tuple[str, ...] = (),
) -> Compiled:
    """Compile a kernel.

    Args:
        function: decorated by ``triton.jit``.
        target: compute capability, 90 for sm_90.
        types: of its arguments but the constants.
        constants: values of its constants.
        warps: of a program.
        stages: of its pipeline.
        aligned: numbers that are multiples of 16, as all addresses are taken to be; the launcher
            finds that out for itself.
    """
    names = function.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or name in aligned
    }
    compiled = triton.compile(
        ASTSource(fn=function, signature=signature, constexprs=dict(constants), attrs=attributes),
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    ptx = compiled.asm["ptx"]
    # tiles below the size of the newer instructions take the older ones
    matrix = sum(ptx.count(name) for name in {MATRIX[target], "mma.sync"})
    newest = ptx.count(MATRIX[target])
    return Compiled(ptx, matrix, newest, spilled(ptx), compiled.metadata.shared)
