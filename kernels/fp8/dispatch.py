"""Rounding and product, each in the forms that a device has; both are registered with torch."""

from typing import Any, Literal

import torch
from torch import Tensor

from magi_world.kernels.device import BACKENDS
from magi_world.kernels.fp8 import reference, scaled_mm, triton_ops
from magi_world.kernels.fp8.rounding import quantise_reference
from magi_world.kernels.registration import refuse_gradients, register

Backend = Literal["reference", "scaled_mm", "triton"]
_WHY = "rounds to eight bits"


def quantise(
    x: Tensor, scale: Tensor, *, backend: Literal["auto", "reference", "triton"] = "auto"
) -> Tensor:
    """Divide, clamp and round `x [..., K]` to float8 e4m3fn. Not differentiable.

    Division and clamp are float32; then it is rounded twice, to bfloat16 and to float8, because
    the models were quantised so (golden README section 8).

    Args:
        x: activations.
        scale: float32 `[1]` or one entry per channel, `[K]` or `[1, K]`.
        backend: ``triton`` is one kernel, ``auto`` takes it on devices with FP8 units.

    Raises:
        ValueError: a scale of another size, an unknown backend, or ``triton`` where it cannot run.
        RuntimeError: an argument needs a gradient.
    """
    if backend not in BACKENDS:
        raise ValueError(f"fp8 backend {backend!r} is not one of {BACKENDS}")
    if scale.numel() not in (1, x.shape[-1]):
        raise ValueError(
            f"scale {tuple(scale.shape)}: expected one entry, or one for each of {x.shape[-1]} "
            "channels"
        )
    if not x.is_cuda and backend != "triton" and not torch.compiler.is_compiling():
        refuse_gradients("fp8_quantise", _WHY, x, scale)
        return quantise_reference(x, scale)
    quantised: Tensor = QUANTISE(x, scale, backend)
    return quantised


def _quantise(x: Tensor, scale: Tensor, backend: str) -> Tensor:
    if backend == "reference":
        return quantise_reference(x, scale)
    why_not = triton_ops.refuses(x.device, x.dtype)
    if why_not is None:
        return triton_ops.quantise_triton(x, scale)
    if backend == "triton":
        raise ValueError(f"fp8 backend 'triton' {why_not}")
    return quantise_reference(x, scale)


def _fake_quantise(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape, dtype=torch.float8_e4m3fn)


QUANTISE = register(
    "fp8_quantise(Tensor x, Tensor scale, str backend) -> Tensor",
    _quantise,
    _fake_quantise,
    inference_only=_WHY,
)


def available(q_MK: Tensor, w_NK: Tensor, dtype: torch.dtype) -> list[Backend]:
    """The forms that can compute a product, the preferred one first."""
    forms: list[Backend] = ["scaled_mm"] if scaled_mm.supported(q_MK, w_NK, dtype) else []
    if triton_ops.refuses(q_MK.device, dtype) is None:
        forms.append("triton")  # takes sizes that are no multiples of 16 too
    return [*forms, "reference"]


def matmul(
    q_MK: Tensor,
    w_NK: Tensor,
    scales: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Multiply quantised activations with quantised weights. Not differentiable.

    Args:
        q_MK: float8 e4m3fn `[M, K]`.
        w_NK: float8 e4m3fn `[N, K]`.
        scales: float32 scalars that undo the quantisation of each side.
        dtype: of the result; the sum is float32 and rounded once.
        backend: forces a form; None takes the first of :func:`available`.

    Returns:
        `[M, N]`.

    Raises:
        ValueError: matrices that do not fit together, or a forced form that this device or shape
            does not have.
        RuntimeError: a scale needs a gradient.
    """
    if q_MK.ndim != 2 or w_NK.ndim != 2 or q_MK.shape[1] != w_NK.shape[1]:
        raise ValueError(
            f"q {tuple(q_MK.shape)}, w {tuple(w_NK.shape)}: expected [M, K] and [N, K]"
        )
    if torch.compiler.is_compiling():
        product: Tensor = MATMUL(q_MK, w_NK, *scales, dtype, backend)
        return product
    refuse_gradients("fp8_matmul", _WHY, *scales)
    return _matmul(q_MK, w_NK, *scales, dtype, backend)


def _matmul(
    q_MK: Tensor,
    w_NK: Tensor,
    scale_q: Tensor,
    scale_w: Tensor,
    dtype: torch.dtype,
    backend: str | None,
) -> Tensor:
    possible = available(q_MK, w_NK, dtype)
    chosen = possible[0] if backend is None else backend
    if chosen not in possible:
        raise ValueError(f"fp8 backend {chosen!r} is not one of {possible} here")
    forms = {"scaled_mm": scaled_mm.matmul, "triton": triton_ops.matmul_triton}
    return forms.get(chosen, reference.matmul)(q_MK, w_NK, (scale_q, scale_w), dtype)


def _fake_matmul(
    q: Tensor, w: Tensor, scale_q: Tensor, scale_w: Tensor, dtype: torch.dtype, backend: str | None
) -> Tensor:
    return q.new_empty((q.shape[0], w.shape[0]), dtype=dtype)


MATMUL = register(
    "fp8_matmul(Tensor q, Tensor w, Tensor scale_q, Tensor scale_w, ScalarType dtype, "
    "str? backend) -> Tensor",
    _matmul,
    _fake_matmul,
    inference_only=_WHY,
)
