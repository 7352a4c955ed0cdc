# mypy: ignore-errors
"""Triton kernels of FP8: quantise, and the product of two quantised matrices.

Names: i_ index, o_ offsets, b_ a block in registers; M rows of activations, N of weights, K inner.
"""

import triton
import triton.language as tl


@triton.jit
def quantise_kernel(x, scale, out, K, PER_CHANNEL: tl.constexpr, BLOCK: tl.constexpr):
    """x and out `[rows, K]`, contiguous; scale `[K]` or `[1]`; grid (rows, pieces of K)."""
    i_row = tl.program_id(0).to(tl.int64)
    o_k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    b_x = tl.load(x + i_row * K + o_k, mask=o_k < K, other=0.0).to(tl.float32)
    if PER_CHANNEL:
        b_scale = tl.load(scale + o_k, mask=o_k < K, other=1.0)
    else:
        b_scale = tl.zeros([BLOCK], tl.float32) + tl.load(scale)
    # the division is the exactly rounded one, and NaN stays NaN, as in the emulation
    b_x = tl.clamp(tl.div_rn(b_x, b_scale), -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + i_row * K + o_k, b_x.to(tl.bfloat16).to(tl.float8e4nv), mask=o_k < K)


@triton.jit
def scaled_matmul_kernel(
    q, w, scale_q, scale_w, out, M, N, K, stride_q, stride_w,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out `[M, N]` = q `[M, K]` @ w `[N, K]` transposed, times both scales; grid (tiles)."""
    tiles_n = tl.cdiv(N, BN)
    # programs that run together share rows of q and w
    i_group = tl.program_id(0) // (GROUP * tiles_n)
    first_m = i_group * GROUP
    high = min(tl.cdiv(M, BM) - first_m, GROUP)
    i_inside = tl.program_id(0) % (GROUP * tiles_n)
    i_m, i_n = first_m + i_inside % high, i_inside // high
    o_m = i_m * BM + tl.arange(0, BM)
    o_n = i_n * BN + tl.arange(0, BN)
    o_k = tl.arange(0, BK)
    at_q = q + o_m.to(tl.int64)[:, None] * stride_q + o_k[None, :]
    at_w = w + o_n.to(tl.int64)[:, None] * stride_w + o_k[None, :]
    b_acc = tl.zeros([BM, BN], tl.float32)
    for i_k in range(0, tl.cdiv(K, BK)):
        inside = (o_k < K - i_k * BK)[None, :]
        b_q = tl.load(at_q, mask=(o_m < M)[:, None] & inside, other=0.0)
        b_w = tl.load(at_w, mask=(o_n < N)[:, None] & inside, other=0.0)
        # Hopper's units keep few bits of a sum: after 128 products, at most BK, it moves to float32
        b_acc = tl.dot(b_q, tl.trans(b_w), b_acc, max_num_imprecise_acc=128)
        at_q += BK
        at_w += BK
    b_out = b_acc * (tl.load(scale_q) * tl.load(scale_w))
    at = out + o_m.to(tl.int64)[:, None] * N + o_n[None, :]
    tl.store(at, b_out.to(out.dtype.element_ty), mask=(o_m < M)[:, None] & (o_n < N)[None, :])
