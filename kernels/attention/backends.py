"""Runs a checked call on the backend that takes it."""

import torch
from torch import Tensor

from magi_world.kernels.attention.call import current
from magi_world.kernels.attention.choice import choose, describe
from magi_world.kernels.attention.cpu import attention_cpu
from magi_world.kernels.attention.device_slices import DeviceSlices
from magi_world.kernels.attention.errors import BackendError
from magi_world.kernels.attention.flash2 import attention_flash2
from magi_world.kernels.attention.flash4 import attention_flash4
from magi_world.kernels.attention.flex import attention_flex
from magi_world.kernels.attention.reference import attention_reference
from magi_world.kernels.attention.sdpa import attention_sdpa
from magi_world.kernels.attention.slices import AttnSlices
from magi_world.kernels.attention.triton_ops import attention_triton


def check_extent(q: Tensor, k: Tensor, slices: AttnSlices | DeviceSlices) -> None:
    """Refuse a mask that is larger than the call, or was reserved for calls of another size.

    Raises:
        ValueError: it names rows or keys that are not there, or kernels would leave rows out.
    """
    num_queries, num_keys = slices.extent()
    if isinstance(slices, DeviceSlices) and slices.shape != (q.shape[0], k.shape[0]):
        raise ValueError(
            f"the mask was reserved for {num_queries} queries and {num_keys} keys in every call, "
            f"but there are {q.shape[0]} queries and {k.shape[0]} keys"
        )
    if num_queries > q.shape[0] or num_keys > k.shape[0]:
        raise ValueError(
            f"the mask reaches to query {num_queries} and key {num_keys}, but there are "
            f"{q.shape[0]} queries and {k.shape[0]} keys"
        )


def chosen_backend(
    q: Tensor,
    slices: AttnSlices | DeviceSlices,
    sink: Tensor | None,
    softcap: float,
    backend: str,
    *,
    needs_grad: bool,
    deterministic: bool = False,
) -> str:
    """The name of the backend that runs a call.

    Raises:
        BackendError, BackendMissing: as :func:`magi_world.kernels.attention.attention`.
    """
    if q.device.type == "cpu" and backend == "auto":  # the quickest way for many small calls
        return "cpu" if softcap else "sdpa"
    call = describe(q, sink, softcap, needs_grad=needs_grad, deterministic=deterministic)
    return choose(backend, call, slices)


def capturing(q: Tensor) -> bool:
    """Whether a CUDA graph is being captured."""
    return q.is_cuda and torch.cuda.is_current_stream_capturing()


def run_backend(
    name: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slices: AttnSlices | DeviceSlices,
    *,
    scale: float,
    sink: Tensor | None,
    softcap: float,
    deterministic: bool,
) -> tuple[Tensor, Tensor]:
    """Call the backend of this name; arguments as of the public function.

    Raises:
        BackendError: a graph is being captured that would keep the mask of this moment.
    """
    if name == "triton":
        return attention_triton(q, k, v, slices, scale=scale, softcap=softcap, sink=sink)
    if isinstance(slices, DeviceSlices) and capturing(q):
        raise BackendError(
            f"backend {name!r} reads a refilled mask on the host: the graph that is being captured "
            "would keep the mask of this moment; only 'triton' reads it on the device"
        )
    mask = current(slices)
    if name == "sdpa":
        return attention_sdpa(q, k, v, mask, scale=scale, sink=sink)
    if name == "flash4":
        return attention_flash4(q, k, v, mask, scale=scale, sink=sink, deterministic=deterministic)
    if name == "flash2":
        return attention_flash2(
            q, k, v, mask, scale=scale, softcap=softcap, deterministic=deterministic
        )
    whole = {"cpu": attention_cpu, "flex": attention_flex, "reference": attention_reference}
    return whole[name](q, k, v, mask, scale=scale, softcap=softcap, sink=sink)
