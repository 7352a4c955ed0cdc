"""One function for all attention: checks the call and hands it to a backend."""

import torch
from torch import Tensor

from magi_world.kernels.attention.call import current
from magi_world.kernels.attention.choice import BACKENDS, Backend, choose, describe
from magi_world.kernels.attention.cpu import attention_cpu
from magi_world.kernels.attention.device_slices import DeviceSlices
from magi_world.kernels.attention.flash2 import attention_flash2
from magi_world.kernels.attention.flash4 import attention_flash4
from magi_world.kernels.attention.flex import attention_flex
from magi_world.kernels.attention.reference import attention_reference
from magi_world.kernels.attention.sdpa import attention_sdpa
from magi_world.kernels.attention.slices import AttnSlices
from magi_world.kernels.attention.triton_ops import attention_triton


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
        slices: which query sees which key; immutable, or refilled in place between calls.
        scale: factor on q·k, `D ** -0.5` when None.
        softcap: scores become `softcap * tanh(scores / softcap)`; 0 switches it off.
        sink: float32 `[S, H]` or `[H]`, logits without a value, neither scaled nor capped.
        deterministic: the same bits for the same input in every call. All backends always are,
            but for ``flash4`` and ``flash2``, whose backward is slower with it.
        backend: ``auto`` takes the fastest that accepts the call, see
            :func:`magi_world.kernels.attention.explain`. ``reference`` and, on a CPU, ``cpu`` take
            everything, ``sdpa`` all but a softcap; ``flex`` is torch's FlexAttention, ``triton``
            our own kernels, ``flash4`` and ``flash2`` the packages flash-attn-4 and flash-attn.

    Under ``torch.autocast`` on a CPU, q, k and v may differ in dtype; all is done in float32.

    Returns:
        The output `[Tq, H, D]` in the dtype of q, 0 where a row sees no key, and the natural
        log-sum-exp `[Tq, H]` in float32 (float64 for float64 input): -inf where a row sees no key
        and there is no sink. Gradients reach q, k, v and the sink through both.

    Raises:
        ValueError: shapes, dtypes or a mask that do not fit together, an unknown backend.
        BackendError: the chosen backend does not take the call; a ValueError too.
        BackendMissing: its package is absent or does not import.
    """
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {('auto', *BACKENDS)}")
    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}: expected "
            "[Tq, H, D], [Tk, G, D] and [Tk, G, D]"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{q.shape[1]} query heads are not a multiple of {k.shape[1]} key heads")
    if torch.is_autocast_enabled(q.device.type) and q.device.type == "cpu":
        # linear layers give half precision there, norms do not; torch's CPU kernel is several
        # times slower backwards in half precision than in float32
        q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
        with torch.autocast("cpu", enabled=False):
            return attention(
                q, k, v, slices, scale=scale, softcap=softcap, sink=sink,
                deterministic=deterministic, backend=backend,
            )  # fmt: skip
    if not q.dtype == k.dtype == v.dtype or not q.is_floating_point():
        raise ValueError(f"dtypes {q.dtype}, {k.dtype}, {v.dtype} must be one floating dtype")
    num_queries, num_keys = slices.extent()
    if num_queries > q.shape[0] or num_keys > k.shape[0]:
        raise ValueError(
            f"the mask reaches to query {num_queries} and key {num_keys}, but there are "
            f"{q.shape[0]} queries and {k.shape[0]} keys"
        )
    if sink is not None and (sink.ndim not in (1, 2) or sink.shape[-1] != q.shape[1]):
        raise ValueError(
            f"sink {tuple(sink.shape)}: expected [S, H] or [H] with {q.shape[1]} query heads"
        )
    scale = q.shape[2] ** -0.5 if scale is None else scale
    if q.device.type == "cpu" and backend == "auto":  # the quickest way for many small calls
        chosen = "cpu" if softcap else "sdpa"
    else:
        needs_grad = torch.is_grad_enabled() and (
            q.requires_grad or k.requires_grad or v.requires_grad
            or (sink is not None and sink.requires_grad)
        )  # fmt: skip
        chosen = choose(backend, describe(q, sink, softcap, needs_grad=needs_grad), slices)
    if chosen == "triton":
        return attention_triton(q, k, v, slices, scale=scale, softcap=softcap, sink=sink)
    mask = current(slices)
    if chosen == "sdpa":
        return attention_sdpa(q, k, v, mask, scale=scale, sink=sink)
    if chosen == "flash4":
        return attention_flash4(q, k, v, mask, scale=scale, sink=sink, deterministic=deterministic)
    if chosen == "flash2":
        return attention_flash2(
            q, k, v, mask, scale=scale, softcap=softcap, deterministic=deterministic
        )
    whole = {"cpu": attention_cpu, "flex": attention_flex, "reference": attention_reference}
    return whole[chosen](q, k, v, mask, scale=scale, softcap=softcap, sink=sink)
