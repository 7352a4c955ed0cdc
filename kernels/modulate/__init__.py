"""Gate of a chunk, post-norm and residual in one pass over the tokens."""

from magi_world.kernels.modulate.dispatch import gate_norm_residual
from magi_world.kernels.modulate.reference import gated_norm

__all__ = ["gate_norm_residual", "gated_norm"]
