# mypy: ignore-errors
"""Triton kernel of gate, post-norm and residual: every element is read once and written once.

Names: o_ offsets, b_ a block in registers, B* padded sizes.
"""

import triton
import triton.language as tl


@triton.jit
def gate_norm_residual_kernel(
    x, branch, gate, weight, bias, out, stride_x, stride_branch, stride_gate, T, tokens, eps,
    E: tl.constexpr, BE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out `[T, E]`, contiguous; ``tokens`` rows share a row of gates; grid (blocks of rows)."""
    o_t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_e = tl.arange(0, BE)
    row, channel = (o_t < T)[:, None], (o_e < E)[None, :]
    inside = row & channel
    o_row = o_t.to(tl.int64)[:, None]
    o_gate = (o_t // tokens).to(tl.int64)[:, None]
    b_gated = tl.load(branch + o_row * stride_branch + o_e[None, :], mask=inside, other=0.0)
    b_gate = tl.load(gate + o_gate * stride_gate + o_e[None, :], mask=inside, other=0.0)
    b_gated = b_gated.to(tl.float32) * b_gate.to(tl.float32)
    b_mean = tl.sum(b_gated, 1) / E
    b_centred = tl.where(channel, b_gated - b_mean[:, None], 0.0)
    b_scale = 1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / E + eps)
    b_factor = tl.load(weight + o_e, mask=o_e < E, other=0.0).to(tl.float32) + 1.0
    b_bias = tl.load(bias + o_e, mask=o_e < E, other=0.0).to(tl.float32)
    b_normed = b_centred * b_scale[:, None] * b_factor[None, :] + b_bias[None, :]
    b_x = tl.load(x + o_row * stride_x + o_e[None, :], mask=inside, other=0.0).to(tl.float32)
    b_out = (b_x + b_normed).to(out.dtype.element_ty)
    tl.store(out + o_row * E + o_e[None, :], b_out, mask=inside)
