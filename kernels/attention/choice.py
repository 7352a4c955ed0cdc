"""Which backend takes a call, and why.

``auto`` takes the first of :func:`order` that does not refuse: flash-attn-4 where it has a backward
for lists of tiles, then our own kernels, then torch's. What deviates from the plan does so for a
reason:

- On a CPU ``sdpa`` comes before ``cpu``: torch's fused kernel, called group by group, is the faster
  of the two wherever both take the call (docs/benchmarks.md).
- On sm_120 flash-attn-4 is not taken: it knows a forward only there, and would give a training run
  other kernels for its evaluation than for its steps.
- A mask that is refilled goes to ``triton`` first on every GPU: the other backends read it on the
  host, so a captured graph would keep the mask that it was captured with.
- ``flash2`` is not taken for gradients: it has none through lse, which only the backward would
  find.
- torch's ``varlen_attn`` is no backend: it is flash-attention for the masks of ``flash2`` again,
  and those before it take them all.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from magi_world.kernels.attention import default, flash2, flash4, flex, triton_ops
from magi_world.kernels.attention.call import Call, Refusal, current
from magi_world.kernels.attention.default import BACKENDS
from magi_world.kernels.attention.device_slices import DeviceSlices
from magi_world.kernels.attention.errors import BackendError, BackendMissing
from magi_world.kernels.attention.slices import AttnSlices
from magi_world.kernels.device import capability


@dataclass(frozen=True)
class Choice:
    """What ``backend="auto"`` takes for a call."""

    backend: str
    reason: str
    refused: dict[str, str]
    """every backend that does not take the call, with its reason"""

    def __str__(self) -> str:
        lines = [f"{self.backend}: {self.reason}"]
        return "\n".join([*lines, *(f"  not {name}: {why}" for name, why in self.refused.items())])


def order(call: Call) -> tuple[str, ...]:
    """Backends from the first that ``auto`` asks to the last."""
    if call.device.type == "cpu":
        # torch's fused kernel is ahead of blocks of plain operations wherever it takes a call
        return ("sdpa", "cpu", "reference")
    if call.device.type == "cuda":
        ours = ("triton",) if call.needs_grad else ("triton", "flash2")
        if call.capability // 10 in (9, 10, 11) and not call.refilled:
            return ("flash4", *ours, "flex", "sdpa", "reference")
        return (*ours, "flex", "sdpa", "reference")
    return ("sdpa", "reference")


def refusal(backend: str, call: Call, slices: AttnSlices) -> Refusal | None:
    """Why a backend does not take a call, or None when it does."""
    if backend == "reference":
        return None
    if backend == "cpu":
        on_cpu = call.device.type == "cpu"
        return None if on_cpu else Refusal(f"runs on a CPU, not on {call.device.type}")
    if backend == "sdpa":
        if call.softcap:
            return Refusal("takes no softcap")
        if call.deterministic and call.needs_grad and call.device.type != "cpu":
            return Refusal("adds the gradients of keys in no fixed order there")
        return None
    refuses = {
        "flex": flex.refuses,
        "triton": triton_ops.refuses,
        "flash4": flash4.refuses,
        "flash2": flash2.refuses,
    }
    return refuses[backend](call, slices)


def choose(backend: str, call: Call, slices: AttnSlices | DeviceSlices) -> str:
    """The name of the backend that runs a call.

    Raises:
        BackendError: the backend that was asked for does not take the call.
        BackendMissing: its package is absent.
    """
    mask = current(slices)
    call = call._replace(refilled=isinstance(slices, DeviceSlices))
    key = ("backend", backend, call)
    chosen: str | None = mask.plans.get(key)
    if chosen is None:
        chosen = _choose(backend, call, mask)
        mask.plans[key] = chosen
    return chosen


def _choose(backend: str, call: Call, slices: AttnSlices) -> str:
    if backend == "auto":
        return next(name for name in order(call) if refusal(name, call, slices) is None)
    refused = refusal(backend, call, slices)
    if refused is None:
        return backend
    others = [name for name in order(call) if refusal(name, call, slices) is None]
    error = BackendMissing if refused.missing else BackendError
    raise error(
        f"backend {backend!r} {refused.reason}; this call is taken by {', '.join(others)} or 'auto'"
    )


def explain(
    q: Tensor,
    slices: AttnSlices | DeviceSlices,
    *,
    sink: Tensor | None = None,
    softcap: float = 0.0,
    deterministic: bool = False,
    needs_grad: bool | None = None,
) -> Choice:
    """What ``attention(q, k, v, slices, ...)`` would run on, and why not on another backend.

    Args:
        q: the queries `[Tq, H, D]`; keys and values are of the same device and dtype.
        slices: the mask.
        sink: as in the call.
        softcap: as in the call.
        deterministic: as in the call.
        needs_grad: whether any of q, k, v and the sink needs a gradient; None looks at q and the
            sink.

    Raises:
        BackendError: the default backend of this process does not take the call.
    """
    if needs_grad is None:
        asked = q.requires_grad or (sink is not None and sink.requires_grad)
        needs_grad = torch.is_grad_enabled() and asked
    call = describe(q, sink, softcap, needs_grad=needs_grad, deterministic=deterministic)
    # for gradients the mask of this moment is taken, see the call
    call = call._replace(refilled=isinstance(slices, DeviceSlices) and not needs_grad)
    mask = current(slices)
    refused = {
        name: found.reason for name in BACKENDS if (found := refusal(name, call, mask)) is not None
    }
    if default.current != "auto":
        name = choose(default.current, call, slices)
        return Choice(name, "the default backend of this process", refused)
    ranked = order(call)
    chosen = next(name for name in ranked if name not in refused)
    device = call.device.type + (f" sm_{call.capability}" if call.capability else "")
    return Choice(
        chosen,
        f"the first of {', '.join(ranked)} on {device} that takes {call.dtype}, "
        f"head width {call.width}"
        + (", a softcap" if call.softcap else "")
        + (", a sink" if call.sink else "")
        + (", gradients" if call.needs_grad else "")
        + (", the same bits in every call" if call.deterministic else "")
        + (", a mask that is refilled" if call.refilled else ""),
        refused,
    )


def describe(
    q: Tensor, sink: Tensor | None, softcap: float, *, needs_grad: bool, deterministic: bool
) -> Call:
    """A call without its data."""
    return Call(
        q.device,
        q.dtype,
        q.shape[2],
        capability(q.device),
        bool(softcap),
        sink is not None,
        needs_grad,
        deterministic,
    )
