"""SiLU of one half times the other half."""

from magi_world.kernels.swiglu.dispatch import silu_multiply

__all__ = ["silu_multiply"]
