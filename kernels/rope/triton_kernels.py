# mypy: ignore-errors
"""Triton kernels of norm and rotary embedding; a program works on some tokens of one head.

The partner of every channel under the rotation is loaded a second time, from the cache of the
multiprocessor. Names: i_ index, o_ offsets, b_ a block in registers, B* padded sizes.
"""

import triton
import triton.language as tl


@triton.jit
def _normed_and_rotated(
    x, weight, bias, cos, sin, o_t, stride_t, T, eps,
    R: tl.constexpr, D: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Tokens `[ROWS, BD]` of the head that x points at, float32."""
    o_d = tl.arange(0, BD)
    # channels 0…R-1 and R…2R-1 are the two halves of a pair
    o_partner = tl.where(o_d < R, o_d + R, tl.where(o_d < 2 * R, o_d - R, o_d))
    o_angle = tl.where(o_d < R, o_d, o_d - R)
    row, channel = (o_t < T)[:, None], (o_d < D)[None, :]
    at = x + o_t.to(tl.int64)[:, None] * stride_t
    b_x = tl.load(at + o_d[None, :], mask=row & channel, other=0.0).to(tl.float32)
    b_partner = tl.load(at + o_partner[None, :], mask=row & channel, other=0.0).to(tl.float32)
    b_mean = (tl.sum(b_x, 1) / D)[:, None]
    b_centred = tl.where(channel, b_x - b_mean, 0.0)
    b_scale = (1.0 / tl.sqrt(tl.sum(b_centred * b_centred, 1) / D + eps))[:, None]
    b_factor = tl.load(weight + o_d, mask=o_d < D, other=0.0).to(tl.float32) + 1.0
    b_bias = tl.load(bias + o_d, mask=o_d < D, other=0.0).to(tl.float32)
    b_normed = b_centred * b_scale * b_factor[None, :] + b_bias[None, :]
    b_factor = tl.load(weight + o_partner, mask=o_d < D, other=0.0).to(tl.float32) + 1.0
    b_bias = tl.load(bias + o_partner, mask=o_d < D, other=0.0).to(tl.float32)
    b_partner = (b_partner - b_mean) * b_scale * b_factor[None, :] + b_bias[None, :]
    turned = row & (o_d < 2 * R)[None, :]
    o_table = o_t.to(tl.int64)[:, None] * R + o_angle[None, :]
    b_cos = tl.load(cos + o_table, mask=turned, other=1.0).to(tl.float32)
    b_sin = tl.load(sin + o_table, mask=turned, other=0.0).to(tl.float32)
    b_sin = tl.where((o_d < R)[None, :], -b_sin, b_sin)
    return b_normed * b_cos + b_partner * b_sin


@triton.jit
def norm_rotary_kernel(
    x, out, weight, bias, cos, sin, stride_t, stride_h, T, H, eps,
    R: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out `[T, H, D]`, contiguous; grid (blocks of tokens, H)."""
    i_h = tl.program_id(1).to(tl.int64)
    o_t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_d = tl.arange(0, BD)
    b_out = _normed_and_rotated(
        x + i_h * stride_h, weight, bias, cos, sin, o_t, stride_t, T, eps, R, D, BD
    )
    at = out + o_t.to(tl.int64)[:, None] * (H * D) + i_h * D + o_d[None, :]
    inside = (o_t < T)[:, None] & (o_d < D)[None, :]
    tl.store(at, b_out.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_rotary_write_kernel(
    q, k, v, out, keys, values, q_weight, q_bias, k_weight, k_bias, cos, sin, rows,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh,
    stride_keys_n, stride_keys_h, stride_values_n, stride_values_h, T, H, K, eps,
    R: tl.constexpr, D: tl.constexpr, BD: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """out `[T, H, D]`; grid (blocks of tokens, H + 2 * K): query, key, then value heads."""
    i_head = tl.program_id(1)
    o_t = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_d = tl.arange(0, BD)
    inside = (o_t < T)[:, None] & (o_d < D)[None, :]
    if i_head < H:
        i_h = i_head.to(tl.int64)
        b_q = _normed_and_rotated(
            q + i_h * stride_qh, q_weight, q_bias, cos, sin, o_t, stride_qt, T, eps, R, D, BD
        )
        at = out + o_t.to(tl.int64)[:, None] * (H * D) + i_h * D + o_d[None, :]
        tl.store(at, b_q.to(out.dtype.element_ty), mask=inside)
    else:
        o_row = tl.load(rows + o_t, mask=o_t < T, other=0).to(tl.int64)[:, None]
        if i_head < H + K:
            i_h = (i_head - H).to(tl.int64)
            b_k = _normed_and_rotated(
                k + i_h * stride_kh, k_weight, k_bias, cos, sin, o_t, stride_kt, T, eps, R, D, BD
            )
            at = keys + o_row * stride_keys_n + i_h * stride_keys_h + o_d[None, :]
            tl.store(at, b_k.to(keys.dtype.element_ty), mask=inside)
        else:
            i_h = (i_head - H - K).to(tl.int64)
            at = v + o_t.to(tl.int64)[:, None] * stride_vt + i_h * stride_vh + o_d[None, :]
            b_v = tl.load(at, mask=inside, other=0.0)
            at = values + o_row * stride_values_n + i_h * stride_values_h + o_d[None, :]
            tl.store(at, b_v.to(values.dtype.element_ty), mask=inside)
