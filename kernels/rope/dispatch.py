"""The functional operation: chooses its form, and is registered with torch."""

from typing import Any

import torch
from torch import Tensor

from magi_world.kernels.device import Backend, chosen
from magi_world.kernels.registration import register
from magi_world.kernels.rope.reference import norm_rotary_reference

# Shape suffixes: T packed tokens, H heads, D head width, R rotated pairs of channels.


def norm_rotary(
    x_THD: Tensor,
    weight_D: Tensor,
    bias_D: Tensor,
    cos_TR: Tensor,
    sin_TR: Tensor,
    eps: float,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """LayerNorm over every head, then the rotary embedding of its first 2R channels.

    Computed in the dtype of the weight and rounded once (golden README sections 3.4 and 9).

    Args:
        x_THD: queries or keys `[T, H, D]`.
        weight_D: the norm's stored weight `[D]`, one less than its factor.
        bias_D: its bias `[D]`.
        cos_TR: cosines `[T, R]`, 2R at most D.
        sin_TR: sines `[T, R]`.
        eps: added to the variance.
        backend: ``triton`` is one kernel, ``auto`` takes it on CUDA devices; its gradient (of x,
            norm, cosines and sines) is plain torch operations, which ``torch.compile`` fuses.

    Returns:
        `[T, H, D]` in the dtype of x.

    Raises:
        ValueError: shapes that do not fit together, an unknown backend, or ``triton`` where it
            cannot run.
    """
    check_rotary(x_THD, (weight_D, bias_D), (cos_TR, sin_TR))
    if chosen(backend, x_THD, weight_D, cos_TR) == "reference":
        return norm_rotary_reference(x_THD, weight_D, bias_D, cos_TR, sin_TR, eps)
    result: Tensor = OP(x_THD, weight_D, bias_D, cos_TR, sin_TR, eps, backend)
    return result


def check_rotary(x_THD: Tensor, norm: tuple[Tensor, Tensor], rotary: tuple[Tensor, Tensor]) -> None:
    """Refuse what a kernel would read beyond its end.

    Raises:
        ValueError: heads, norm and rotary table do not fit together.
    """
    (weight, bias), (cos, sin) = norm, rotary
    T, _, D = x_THD.shape if x_THD.ndim == 3 else (0, 0, 0)
    if not D or not weight.shape == bias.shape == (D,):
        raise ValueError(
            f"x {tuple(x_THD.shape)}, weight {tuple(weight.shape)}, bias {tuple(bias.shape)}: "
            "expected [T, H, D], [D] and [D]"
        )
    if cos.ndim != 2 or cos.shape != sin.shape or cos.shape[0] != T or 2 * cos.shape[1] > D:
        raise ValueError(
            f"cosines {tuple(cos.shape)}, sines {tuple(sin.shape)}: expected [{T}, R] with R at "
            f"most {D // 2}"
        )


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, cos: Tensor, sin: Tensor, eps: float, backend: str
) -> Tensor:
    if chosen(backend, x, weight, cos) == "reference":
        return norm_rotary_reference(x, weight, bias, cos, sin, eps)
    from magi_world.kernels.rope.triton_ops import norm_rotary_triton

    return norm_rotary_triton(x, weight, bias, cos, sin, eps)


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps, _ = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, d_out_THD: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, cos_TR, sin_TR = ctx.saved_tensors
    wide, shape, half = weight.dtype, list(weight.shape), cos_TR.shape[-1]
    x_wide, factor = x.to(wide).contiguous(), weight + 1
    normed, mean, scale = torch.native_layer_norm(x_wide, shape, factor, bias, ctx.eps)
    sizes = [half, half, x.shape[-1] - 2 * half]
    d_a, d_b, d_rest = d_out_THD.to(wide).split(sizes, dim=-1)
    cos, sin = cos_TR[:, None], sin_TR[:, None]
    # a rotation backwards is a rotation by the opposite angle
    d_normed = torch.cat([d_a * cos + d_b * sin, d_b * cos - d_a * sin, d_rest], dim=-1)
    d_x, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
        d_normed, x_wide, shape, mean, scale, factor, bias, [True, True, True]
    )
    d_cos = d_sin = None
    if ctx.needs_input_grad[3] or ctx.needs_input_grad[4]:
        a, b, _ = normed.split(sizes, dim=-1)
        d_cos = (d_a * a + d_b * b).sum(1).to(cos_TR.dtype)
        d_sin = (d_b * a - d_a * b).sum(1).to(sin_TR.dtype)
    return d_x.to(x.dtype), d_weight, d_bias, d_cos, d_sin, None, None


OP = register(
    "norm_rotary(Tensor x, Tensor weight, Tensor bias, Tensor cos, Tensor sin, float eps, "
    "str backend) -> Tensor",
    _forward,
    _fake,
    setup_context=_setup,
    backward=_backward,
)
