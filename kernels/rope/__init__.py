"""Norm and rotary embedding of queries and keys, and their way into the KV cache."""

from magi_world.kernels.rope.dispatch import norm_rotary
from magi_world.kernels.rope.reference import rotate
from magi_world.kernels.rope.write import norm_rotary_write, writes_fused

__all__ = ["norm_rotary", "norm_rotary_write", "rotate", "writes_fused"]
