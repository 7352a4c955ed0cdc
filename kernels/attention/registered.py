"""Attention as an operation of torch: what torch.compile, graphs and autograd see of it.

A mask is told by its number, which is data: one compiled function serves every mask, and a
:class:`~magi_world.kernels.attention.DeviceSlices` that is refilled keeps its number. Registered by
hand, because what ``torch.library`` writes around an ``autograd.Function`` costs as much again.
"""

import math
from typing import Any

import torch
from torch import Tensor

from magi_world.kernels.attention import cpu, sdpa, triton_ops
from magi_world.kernels.attention.autograd import Kernel, Settings, joined_sink, sink_gradient
from magi_world.kernels.attention.backends import check_extent, chosen_backend, run_backend
from magi_world.kernels.attention.call import current
from magi_world.kernels.attention.device_slices import DeviceSlices
from magi_world.kernels.attention.handles import mask_of
from magi_world.kernels.attention.slices import AttnSlices
from magi_world.kernels.registration import LIBRARY, register


def has_own_backward(name: str, q: Tensor) -> bool:
    """Whether a backend's backward is called by itself; others are run again for it."""
    return name in ("cpu", "triton") or (name == "sdpa" and q.device.type == "cpu")


def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink_H: Tensor | None,
    mask: int,
    scale: float,
    softcap: float,
    deterministic: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    slices = mask_of(mask)
    check_extent(q, k, slices)
    name = chosen_backend(
        q, slices, sink_H, softcap, backend, needs_grad=False, deterministic=deterministic
    )
    if has_own_backward(name, q):
        kernel, settings, read = _own(name, (q, k, v), slices, scale, softcap)
        out, lse = kernel.forward(read[0], read[1], read[2], sink_H, settings)
        out = out if out.dtype == q.dtype else out.to(q.dtype)
    else:
        with torch.no_grad():
            out, lse = run_backend(
                name, q, k, v, slices, scale=scale, sink=sink_H, softcap=softcap,
                deterministic=deterministic,
            )  # fmt: skip
    return out.contiguous(), lse.contiguous()


def _fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    out = q.new_empty((q.shape[0], q.shape[1], v.shape[2]))
    return out, q.new_empty((q.shape[0], q.shape[1]), dtype=wide)


def _backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sink_H: Tensor | None,
    out: Tensor,
    lse: Tensor,
    mask: int,
    scale: float,
    softcap: float,
    deterministic: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    slices = mask_of(mask)
    name = chosen_backend(
        q, slices, sink_H, softcap, backend, needs_grad=True, deterministic=deterministic
    )
    if has_own_backward(name, q):
        kernel, settings, inputs = _own(name, (q, k, v, out, d_out), slices, scale, softcap)
        q_, k_, v_, out_, d_out_ = inputs
        found = kernel.backward(d_out_, d_lse, q_, k_, v_, out_, lse, settings)
    else:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in (q, k, v)]
            q_, k_, v_ = leaves
            again = run_backend(
                name, q_, k_, v_, slices, scale=scale, sink=sink_H, softcap=softcap,
                deterministic=deterministic,
            )  # fmt: skip
            # flash2 has no gradient through lse, not even for zeros
            used, towards = (again[:1], [d_out]) if d_lse is None else (again, [d_out, d_lse])
            gradients = torch.autograd.grad(used, leaves, towards, allow_unused=True)
        found = tuple(  # type: ignore[assignment]
            torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True)
        )
    d_q, d_k, d_v = (g.to(x.dtype).contiguous() for g, x in zip(found, (q, k, v), strict=True))
    return d_q, d_k, d_v


def _own(
    name: str,
    tensors: tuple[Tensor, ...],
    slices: AttnSlices | DeviceSlices,
    scale: float,
    softcap: float,
) -> tuple[Kernel, Settings, tuple[Tensor, ...]]:
    """The kernel of a backend, what it is told, and the tensors as it reads them."""
    q, k, v, *others = tensors
    if name == "triton":
        kernel, settings, read = triton_ops.prepared(q, k, v, slices, scale, softcap)
    elif name == "cpu":
        kernel, settings, read = cpu.prepared(q, k, v, current(slices), scale, softcap)
    else:
        kernel, settings, read = sdpa.prepared(q, k, v, current(slices), scale)
    return kernel, settings, (*read, *(x.to(read[0].dtype) for x in others))


def _fake_backward(
    d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


_TAIL = "SymInt mask, float scale, float softcap, bool deterministic, str backend"
BACKWARD = register(
    "attention_backward(Tensor d_out, Tensor? d_lse, Tensor q, Tensor k, Tensor v, Tensor? sink, "
    f"Tensor out, Tensor lse, {_TAIL}) -> (Tensor, Tensor, Tensor)",
    _backward,
    _fake_backward,
)


_PLAIN = (Tensor, torch.nn.Parameter)
"""types of tensors that nobody traces"""


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sink_H: Tensor | None, mask: int, *rest: Any
    ) -> tuple[Tensor, Tensor]:
        if type(q) in _PLAIN and not torch._C._len_torch_dispatch_stack():
            out, lse = _forward(q, k, v, sink_H, mask, *rest)  # nobody is looking on
        else:
            with torch._C._AutoDispatchBelowAutograd():
                out, lse = OP(q, k, v, sink_H, mask, *rest)
        ctx.save_for_backward(q, k, v, sink_H, out, lse)
        ctx.mask, ctx.rest = mask, rest
        # alive until the backward has run; while a compiler traces, the number is a symbol
        ctx.held = mask_of(mask) if isinstance(mask, int) else None
        ctx.set_materialize_grads(False)  # an lse that nobody uses costs nothing
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * (5 + len(ctx.rest))
        if d_out is None and d_lse is None:
            return nothing
        q, k, v, sink_H, out, lse = ctx.saved_tensors
        d_out = torch.zeros_like(out) if d_out is None else d_out
        if d_lse is not None:  # the lse of a row that sees nothing is constant
            d_lse = d_lse.masked_fill(lse == -math.inf, 0.0)
        gradients = BACKWARD(d_out, d_lse, q, k, v, sink_H, out, lse, ctx.mask, *ctx.rest)
        d_sink = None
        if sink_H is not None and ctx.needs_input_grad[3]:
            d_sink = sink_gradient(sink_H, lse, d_out, d_lse, out)
        return (*gradients, d_sink, *nothing[4:])


def _with_gradients(
    q: Tensor, k: Tensor, v: Tensor, sink_H: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor]
    if torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad
        or (sink_H is not None and sink_H.requires_grad)
    ):  # fmt: skip
        result = _Attention.apply(q, k, v, sink_H, *rest)  # type: ignore[no-untyped-call]
        return result
    with torch._C._AutoDispatchBelowAutograd():
        result = OP(q, k, v, sink_H, *rest)
    return result


OP = register(
    f"attention(Tensor q, Tensor k, Tensor v, Tensor? sink, {_TAIL}) -> (Tensor, Tensor)",
    _forward,
    _fake,
)
LIBRARY.impl("attention", _with_gradients, "Autograd")


def attention_registered(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    slices: AttnSlices | DeviceSlices,
    *,
    scale: float,
    sink: Tensor | None,
    softcap: float,
    deterministic: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Call ``torch.ops.magi_world.attention``; arguments as of the public function."""
    if sink is not None:
        wide = torch.promote_types(q_THD.dtype, torch.float32)
        sink = joined_sink(sink, q_THD.shape[1], wide)
    result: tuple[Tensor, Tensor] = OP(
        q_THD, k_TGD, v_TGD, sink, slices.handle, scale, softcap, deterministic, backend
    )
    return result
