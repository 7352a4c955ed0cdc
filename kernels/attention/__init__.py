"""Block-range attention: one call for every mask that is a short list of slices."""

from magi_world.kernels.attention.dispatch import Backend, attention
from magi_world.kernels.attention.errors import BackendError, BackendMissing, SliceError
from magi_world.kernels.attention.slices import AttnSlices

__all__ = ["AttnSlices", "Backend", "BackendError", "BackendMissing", "SliceError", "attention"]
