# mypy: ignore-errors
"""Triton kernels of SiLU-and-multiply; a program works on a piece of one row."""

import triton
import triton.language as tl


@triton.jit
def silu_multiply_kernel(h, out, half, BLOCK: tl.constexpr):
    """h `[rows, 2 * half]`, out `[rows, half]`; grid (rows, pieces of half)."""
    i_row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b_gate = tl.load(h + i_row * 2 * half + o, mask=o < half, other=0.0).to(tl.float32)
    b_up = tl.load(h + i_row * 2 * half + half + o, mask=o < half, other=0.0).to(tl.float32)
    b_out = b_gate / (1.0 + tl.exp(-b_gate)) * b_up
    tl.store(out + i_row * half + o, b_out.to(out.dtype.element_ty), mask=o < half)


@triton.jit
def silu_multiply_backward_kernel(h, d_out, d_h, half, BLOCK: tl.constexpr):
    """d_h `[rows, 2 * half]`; grid (rows, pieces of half)."""
    i_row = tl.program_id(0).to(tl.int64)
    o = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b_gate = tl.load(h + i_row * 2 * half + o, mask=o < half, other=0.0).to(tl.float32)
    b_up = tl.load(h + i_row * 2 * half + half + o, mask=o < half, other=0.0).to(tl.float32)
    b_d = tl.load(d_out + i_row * half + o, mask=o < half, other=0.0).to(tl.float32)
    b_share = 1.0 / (1.0 + tl.exp(-b_gate))
    b_silu = b_gate * b_share
    b_d_gate = b_d * b_up * (b_share + b_silu * (1.0 - b_share))
    b_d_up = b_d * b_silu
    tl.store(d_h + i_row * 2 * half + o, b_d_gate.to(d_h.dtype.element_ty), mask=o < half)
    tl.store(d_h + i_row * 2 * half + half + o, b_d_up.to(d_h.dtype.element_ty), mask=o < half)
