"""One function for all attention: checks the call and hands it to a backend."""

from typing import Any

import torch
from torch import Tensor

from magi_world.kernels.attention import default
from magi_world.kernels.attention.backends import (
    capturing,
    check_extent,
    chosen_backend,
    run_backend,
)
from magi_world.kernels.attention.call import current
from magi_world.kernels.attention.default import BACKENDS, Backend
from magi_world.kernels.attention.device_slices import DeviceSlices
from magi_world.kernels.attention.registered import attention_registered, has_own_backward
from magi_world.kernels.attention.sdpa import attention_sdpa
from magi_world.kernels.attention.slices import AttnSlices


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slices: AttnSlices | DeviceSlices,
    *,
    scale: float | None = None,
    sink: Tensor | None = None,
    softcap: float = 0.0,
    deterministic: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention over packed tokens under a mask of slices.

    Args:
        q: queries `[Tq, H, D]`.
        k: keys `[Tk, G, D]`; H is a multiple of G and query head j reads key head `j // (H // G)`.
        v: values `[Tk, G, D]`.
        slices: which query sees which key; immutable, or refilled in place between calls. Where
            gradients are asked for, a refilled one counts as it is now: what it is filled with
            before the backward changes nothing.
        scale: factor on q·k, `D ** -0.5` when None.
        softcap: scores become `softcap * tanh(scores / softcap)`; 0 switches it off.
        sink: float32 `[S, H]` or `[H]`, logits without a value, neither scaled nor capped.
        deterministic: the same bits for the same input in every call. All backends always are,
            but for the backwards of ``flash2``, which is slower with it, and of ``flash4`` and, on
            a GPU, ``sdpa``, which do not take it.
        backend: ``auto`` takes the fastest that accepts the call, see
            :func:`magi_world.kernels.attention.explain`. ``reference`` and, on a CPU, ``cpu`` take
            everything, ``sdpa`` all but a softcap; ``flex`` is torch's FlexAttention, ``triton``
            our own kernels, ``flash4`` and ``flash2`` the packages flash-attn-4 and flash-attn.
            :func:`magi_world.kernels.attention.default_backend` says what ``auto`` means.

    Keys that a query does not see may be read and then count with weight 0: k and v have to be
    finite in every row, also where the mask hides it.

    Under ``torch.autocast`` q, k and v may differ in dtype: on a CPU all is done in float32, on
    other devices in the dtype of autocast.

    Returns:
        The output `[Tq, H, D]` in the dtype of q, 0 where a row sees no key, and the natural
        log-sum-exp `[Tq, H]` in float32 (float64 for float64 input): -inf where a row sees no key
        and there is no sink. Gradients reach q, k, v and the sink through both.

    Raises:
        ValueError: shapes, dtypes or a mask that do not fit together, an unknown backend.
        BackendError: the chosen backend does not take the call; a ValueError too.
        BackendMissing: its package is absent or does not import.
    """
    if backend == "auto":
        backend = default.current
    elif backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {('auto', *BACKENDS)}")
    fit = q.ndim == k.ndim == 3 and k.shape == v.shape and q.shape[2] == k.shape[2] > 0
    if not fit:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: expected "
            "[Tq, H, D], [Tk, G, D] and [Tk, G, D] with D above 0"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are not a multiple of {k.shape[1]} key heads")
    device = q.device.type
    if torch.is_autocast_enabled(device):
        # linear layers give half precision there, norms do not; torch's CPU kernel is several
        # times slower backwards in half precision than in float32
        low = torch.float32 if device == "cpu" else torch.get_autocast_dtype(device)
        q, k, v = (x if x.dtype == torch.float64 else x.to(low) for x in (q, k, v))
        with torch.autocast(device, enabled=False):
            return attention(
                q, k, v, slices, scale=scale, softcap=softcap, sink=sink,
                deterministic=deterministic, backend=backend,
            )  # fmt: skip
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"dtypes {q.dtype}, {k.dtype}, {v.dtype} must be one floating dtype")
    if sink is not None and (sink.ndim not in (1, 2) or sink.shape[-1] != q.shape[1]):
        raise ValueError(
            f"sink {tuple(sink.shape)}: expected [S, H] or [H] with {q.shape[1]} query heads"
        )
    scale = q.shape[2] ** -0.5 if scale is None else scale
    compiling = torch.compiler.is_compiling()  # the choice is made when the operation runs
    needs_grad = torch.is_grad_enabled() and (
        q.requires_grad or k.requires_grad or v.requires_grad
        or (sink is not None and sink.requires_grad)
    )  # fmt: skip
    if not compiling:
        check_extent(q, k, slices)
        if backend == "auto" and not needs_grad and not softcap and q.device.type == "cpu":
            # small worlds make hundreds of calls a step: nothing may stand in their way
            return attention_sdpa(q, k, v, current(slices), scale=scale, sink=sink)
    if needs_grad and (compiling or not capturing(q)):
        slices = current(slices)  # the backward must not read what it was refilled with since
    whole: dict[str, Any] = {
        "scale": scale,
        "sink": sink,
        "softcap": softcap,
        "deterministic": deterministic,
    }
    if compiling:
        return attention_registered(q, k, v, slices, **whole, backend=backend)
    name = chosen_backend(
        q, slices, sink, softcap, backend, needs_grad=needs_grad, deterministic=deterministic
    )
    if needs_grad and has_own_backward(name, q):
        if name == "sdpa" and q.dtype in (torch.float16, torch.bfloat16):
            # once, in front of everything: what the backward keeps is not rounded then
            out, lse = attention_registered(
                q.float(), k.float(), v.float(), slices, **whole, backend=name
            )
            return out.to(q.dtype), lse
        return attention_registered(q, k, v, slices, **whole, backend=name)
    return run_backend(name, q, k, v, slices, **whole)
