"""One function for all attention: checks the call and chooses the backend."""

from typing import Literal, get_args

import torch
from torch import Tensor

from magi_world.kernels.attention.cpu import attention_cpu
from magi_world.kernels.attention.errors import BackendError
from magi_world.kernels.attention.reference import attention_reference
from magi_world.kernels.attention.sdpa import attention_sdpa
from magi_world.kernels.attention.slices import AttnSlices

Backend = Literal["auto", "reference", "cpu", "sdpa"]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slices: AttnSlices,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sink: Tensor | None = None,
    deterministic: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention over packed tokens under a mask of slices.

    Args:
        q: queries `[Tq, H, D]`.
        k: keys `[Tk, G, D]`; H is a multiple of G and query head j reads key head `j // (H // G)`.
        v: values `[Tk, G, D]`.
        slices: which query sees which key.
        scale: factor on q·k, `D ** -0.5` when None.
        softcap: scores become `softcap * tanh(scores / softcap)`; 0 switches it off.
        sink: float32 `[S, H]` or `[H]`, logits without a value, neither scaled nor capped.
        deterministic: the same bits for the same input in every call; both backends always are.
        backend: ``reference`` takes everything, ``sdpa`` neither softcap nor sink; ``auto``
            takes the fastest that accepts the input.

    Under ``torch.autocast`` on a CPU, q, k and v may differ in dtype; all is done in float32.

    Returns:
        The output `[Tq, H, D]` in the dtype of q, 0 where a row sees no key, and the natural
        log-sum-exp `[Tq, H]` in float32 (float64 for float64 input), -inf there. Without a sink
        the log-sum-exp of ``sdpa`` carries no gradient.

    Raises:
        ValueError: shapes, dtypes or a mask that do not fit together, an unknown backend, or an
            input that the chosen backend does not take.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"backend {backend!r} is not one of {get_args(Backend)}")
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
    if backend == "reference":
        return attention_reference(q, k, v, slices, scale=scale, softcap=softcap, sink=sink)
    if backend == "cpu" or softcap and backend == "auto":
        return attention_cpu(q, k, v, slices, scale=scale, softcap=softcap, sink=sink)
    if softcap:
        raise BackendError("backend 'sdpa' takes no softcap; use 'cpu', 'reference' or 'auto'")
    return attention_sdpa(q, k, v, slices, scale=scale, sink=sink)
