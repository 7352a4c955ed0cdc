"""Block-range attention: one call for every mask that is a short list of slices."""

from magi_world.kernels.attention import builders
from magi_world.kernels.attention.choice import Choice, explain
from magi_world.kernels.attention.default import Backend, default_backend
from magi_world.kernels.attention.device_slices import DeviceSlices
from magi_world.kernels.attention.dispatch import attention
from magi_world.kernels.attention.errors import BackendError, BackendMissing, SliceError
from magi_world.kernels.attention.slices import AttnSlices

__all__ = [
    "AttnSlices",
    "Backend",
    "BackendError",
    "BackendMissing",
    "Choice",
    "DeviceSlices",
    "SliceError",
    "attention",
    "builders",
    "default_backend",
    "explain",
]
