"""Which precision a training's linear layers run in.

Processors with bfloat16 units multiply in it two to three times faster than in float32; without
them it is emulated and a hundred times slower. So "auto" looks and then measures.
"""

import time

import torch

PRECISIONS = ("auto", "float32", "bfloat16")
_SIZE = 512
_WORTH_IT = 1.5  # casting costs something too


def has_bfloat16_units() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX-512 BF16 or AMX)."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    # private names: a torch that lacks one has nothing to say about it
    known = [getattr(torch.cpu, name) for name in checks if hasattr(torch.cpu, name)]
    return any(bool(check()) for check in known)


def choose_precision(wanted: str) -> str:
    """Return "float32" or "bfloat16"; "auto" measures where the processor has the units."""
    if wanted != "auto":
        return wanted
    if not has_bfloat16_units():
        return "float32"
    faster = _seconds(torch.float32) / _seconds(torch.bfloat16)
    return "bfloat16" if faster >= _WORTH_IT else "float32"


def _seconds(dtype: torch.dtype) -> float:
    """The best of several square products."""
    a = torch.ones(_SIZE, _SIZE, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        begin = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begin)
    return best
