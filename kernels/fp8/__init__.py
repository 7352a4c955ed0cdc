"""FP8 products of activations and weights: e4m3fn in, float32 sums (spec section 5.7)."""

from magi_world.kernels.fp8.dispatch import Backend, available, matmul, quantise
from magi_world.kernels.fp8.rounding import LARGEST

__all__ = ["LARGEST", "Backend", "available", "matmul", "quantise"]
