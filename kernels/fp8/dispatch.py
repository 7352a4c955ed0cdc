"""One product, two forms: the card's FP8 units where there are any, else float32."""

from typing import Literal

import torch
from torch import Tensor

from magi_world.kernels.fp8 import reference, scaled_mm

Backend = Literal["reference", "scaled_mm"]


def available(q_MK: Tensor, w_NK: Tensor, dtype: torch.dtype) -> list[Backend]:
    """The forms that can compute a product, the preferred one first."""
    fast: list[Backend] = ["scaled_mm"] if scaled_mm.supported(q_MK, w_NK, dtype) else []
    return [*fast, "reference"]


def matmul(
    q_MK: Tensor,
    w_NK: Tensor,
    scales: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Multiply quantised activations with quantised weights.

    Args:
        q_MK: float8 e4m3fn `[M, K]`.
        w_NK: float8 e4m3fn `[N, K]`.
        scales: float32 scalars that undo the quantisation of each side.
        dtype: of the result; the sum is float32 and rounded once.
        backend: forces a form; None chooses.

    Returns:
        `[M, N]`.

    Raises:
        ValueError: a forced form that this device or shape does not have.
    """
    possible = available(q_MK, w_NK, dtype)
    chosen = possible[0] if backend is None else backend
    if chosen not in possible:
        raise ValueError(f"fp8 backend {chosen!r} is not one of {possible} here")
    if chosen == "scaled_mm":
        return scaled_mm.matmul(q_MK, w_NK, scales, dtype)
    return reference.matmul(q_MK, w_NK, scales, dtype)
