"""The fused operation: chooses its form, and is registered with torch."""

from typing import Any

import torch
from torch import Tensor

from magi_world.kernels.device import Backend, chosen
from magi_world.kernels.modulate.reference import gate_norm_residual_reference
from magi_world.kernels.registration import register

# Shape suffixes: G chunks, n tokens per chunk, T = G * n packed tokens, E hidden width.


def gate_norm_residual(
    x_TE: Tensor,
    branch_TE: Tensor,
    gate_GE: Tensor,
    weight_E: Tensor,
    bias_E: Tensor,
    eps: float,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """``x + LayerNorm(gate * branch)``: how a branch of MAGI-1's layer joins the residual stream.

    Computed in the dtype of the weight and rounded once (golden README sections 3.5 and 9).

    Args:
        x_TE: residual stream `[T, E]`.
        branch_TE: what attention or MLP gave `[T, E]`.
        gate_GE: one gate per chunk `[G, E]`; T is a multiple of G, chunks follow each other.
        weight_E: the norm's stored weight `[E]`, one less than its factor.
        bias_E: its bias `[E]`.
        eps: added to the variance.
        backend: ``triton`` is one kernel, ``auto`` takes it on CUDA devices; its gradient is plain
            torch operations, which ``torch.compile`` fuses.

    Returns:
        `[T, E]` in the dtype of x.

    Raises:
        ValueError: shapes that do not fit together, an unknown backend, or ``triton`` where it
            cannot run.
    """
    _check(x_TE, branch_TE, gate_GE, weight_E, bias_E)
    if chosen(backend, x_TE, branch_TE, gate_GE, weight_E) == "reference":
        return gate_norm_residual_reference(x_TE, branch_TE, gate_GE, weight_E, bias_E, eps)
    result: Tensor = OP(x_TE, branch_TE, gate_GE, weight_E, bias_E, eps, backend)
    return result


def _check(x: Tensor, branch: Tensor, gate: Tensor, weight: Tensor, bias: Tensor) -> None:
    """Refuse what a kernel would read beyond its end."""
    T, E = x.shape if x.ndim == 2 else (0, 0)
    G = gate.shape[0] if gate.ndim == 2 and gate.shape[1] == E else 0
    if not E or branch.shape != x.shape or not weight.shape == bias.shape == (E,):
        raise ValueError(
            f"x {tuple(x.shape)}, branch {tuple(branch.shape)}, weight {tuple(weight.shape)}, bias "
            f"{tuple(bias.shape)}: expected [T, E], [T, E], [E] and [E]"
        )
    if not G or T % G:
        raise ValueError(
            f"gate {tuple(gate.shape)}: expected [G, {E}] with G a divisor of the {T} tokens"
        )


def _forward(
    x: Tensor, branch: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, eps: float, backend: str
) -> Tensor:
    if chosen(backend, x, branch, gate, weight) == "reference":
        return gate_norm_residual_reference(x, branch, gate, weight, bias, eps)
    from magi_world.kernels.modulate.triton_ops import gate_norm_residual_triton

    return gate_norm_residual_triton(x, branch, gate, weight, bias, eps)


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, branch, gate, weight, bias, ctx.eps, _ = inputs
    ctx.x_dtype = x.dtype
    ctx.save_for_backward(branch, gate, weight, bias)


def _backward(ctx: Any, d_out_TE: Tensor) -> tuple[Tensor | None, ...]:
    branch_TE, gate_GE, weight, bias = ctx.saved_tensors
    wide, G = weight.dtype, gate_GE.shape[0]
    branch_GnE = branch_TE.to(wide).unflatten(0, (G, -1))
    gate_G1E = gate_GE[:, None].to(wide)
    gated = (branch_GnE * gate_G1E).flatten(0, 1)
    factor = weight + 1
    _, mean, scale = torch.native_layer_norm(gated, list(weight.shape), factor, bias, ctx.eps)
    d_gated, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
        d_out_TE.to(wide).contiguous(), gated, list(weight.shape), mean, scale, factor, bias,
        [True, True, True],
    )  # fmt: skip
    d_GnE = d_gated.unflatten(0, (G, -1))
    d_branch = (d_GnE * gate_G1E).flatten(0, 1).to(branch_TE.dtype)
    d_gate = (d_GnE * branch_GnE).sum(1).to(gate_GE.dtype)
    return d_out_TE.to(ctx.x_dtype), d_branch, d_gate, d_weight, d_bias, None, None


OP = register(
    "gate_norm_residual(Tensor x, Tensor branch, Tensor gate, Tensor weight, Tensor bias, "
    "float eps, str backend) -> Tensor",
    _forward,
    _fake,
    setup_context=_setup,
    backward=_backward,
)
