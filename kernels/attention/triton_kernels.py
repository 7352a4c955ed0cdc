# mypy: ignore-errors
"""Triton kernels of block-range attention: forward, d_q, and d_k with d_v.

A program owns one tile of one head and walks the list of tiles that it needs
(:mod:`magi_world.kernels.attention.tiles`): first the full ones without a mask, then the partial
ones, masked by the two bounds per row of their slice. Nothing is added to from two programs, so
there are no atomics and results do not change from call to call.

Scores are kept in base 2: exp s = exp2(s * log2 e). Names: i_ index, o_ offsets, b_ a block in
registers; B* block sizes; M rows of queries, N keys, D channels.
"""

import triton
import triton.language as tl

# log2 e = 1.4426950408889634 and ln 2 = 0.6931471805599453 are written out: the interpreter cannot
# multiply a tensor by a global constant


@triton.jit
def _tanh(x):
    return 1.0 - 2.0 / (tl.exp2(2.0 * 1.4426950408889634 * x) + 1.0)


@triton.jit
def _load(
    pointer, o_rows, o_d, stride, rows, D: tl.constexpr, BD: tl.constexpr, WHOLE: tl.constexpr
):
    """Rows `[B, BD]`; what lies outside the tensor is 0. WHOLE: all rows lie inside."""
    at = pointer + o_rows.to(tl.int64)[:, None] * stride + o_d[None, :]
    if WHOLE and D == BD:
        return tl.load(at)
    if WHOLE:
        return tl.load(at, mask=(o_d < D)[None, :], other=0.0)
    return tl.load(at, mask=(o_rows < rows)[:, None] & (o_d < D)[None, :], other=0.0)


@triton.jit
def _store(pointer, b, o_rows, o_d, stride, rows, D: tl.constexpr):
    at = pointer + o_rows.to(tl.int64)[:, None] * stride + o_d[None, :]
    tl.store(at, b.to(pointer.dtype.element_ty), mask=(o_rows < rows)[:, None] & (o_d < D)[None, :])


@triton.jit
def _bounds(slices, owner, o_m):
    """First and one-past-last key that a slice shows to each row; (0, 0) outside its rows."""
    row = slices + owner * 5
    q_start, q_end = tl.load(row), tl.load(row + 1)
    k_start, k_end, kind = tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)
    left = k_start + (kind >> 1) * (o_m - q_start)
    right = k_end - (kind & 1) * (q_end - 1 - o_m)
    return left, tl.where((o_m >= q_start) & (o_m < q_end), right, 0)


@triton.jit
def _softmax_step(
    b_q, b_k, b_v, b_acc, b_top, b_sum, left, right, o_n, scale, cap,
    MASKED: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Take one more tile of keys into the online softmax."""
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    if CAPPED:
        b_s = _tanh(b_s * (scale / cap)) * (cap * 1.4426950408889634)
    else:
        b_s = b_s * (scale * 1.4426950408889634)
    if MASKED:
        inside = (o_n[None, :] >= left[:, None]) & (o_n[None, :] < right[:, None])
        b_s = tl.where(inside, b_s, -float("inf"))
    b_new = tl.maximum(b_top, tl.max(b_s, 1))
    b_safe = b_new
    if MASKED:  # a row that has seen nothing yet: exp2(-inf - 0) = 0, not NaN
        b_safe = tl.where(b_new == -float("inf"), 0.0, b_new)
    b_p = tl.exp2(b_s - b_safe[:, None])
    b_fade = tl.exp2(b_top - b_safe)
    b_sum = b_sum * b_fade + tl.sum(b_p, 1)
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_fade[:, None], input_precision=PRECISION)
    return b_acc, b_new, b_sum


@triton.jit
def attention_forward(
    q, k, v, sink, out, lse, slices, starts, splits, ends, tiles, owners, order,
    scale, cap, stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, Tq, Tk, H,
    SHARE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    SINK: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out `[Tq, H, D]` and lse `[Tq, H]`, both contiguous; grid (query tiles, H)."""
    i_tile = tl.load(order + tl.program_id(0))
    i_h = tl.program_id(1)
    o_m = i_tile * BM + tl.arange(0, BM)
    o_d = tl.arange(0, BD)
    q += i_h.to(tl.int64) * stride_qh
    k += (i_h // SHARE).to(tl.int64) * stride_kh
    v += (i_h // SHARE).to(tl.int64) * stride_vh
    b_q = _load(q, o_m, o_d, stride_qt, Tq, D, BD, False)
    b_acc = tl.zeros([BM, BD], tl.float32)
    if SINK:  # a score without a value
        b_top = tl.zeros([BM], tl.float32) + tl.load(sink + i_h) * 1.4426950408889634
        b_sum = tl.full([BM], 1.0, tl.float32)
    else:
        b_top = tl.full([BM], -float("inf"), tl.float32)
        b_sum = tl.zeros([BM], tl.float32)
    start, split, end = tl.load(starts + i_tile), tl.load(splits + i_tile), tl.load(ends + i_tile)
    for i in range(start, split):
        o_n = tl.load(tiles + i) * BN + tl.arange(0, BN)
        b_k = _load(k, o_n, o_d, stride_kt, Tk, D, BD, True)
        b_v = _load(v, o_n, o_d, stride_vt, Tk, D, BD, True)
        b_acc, b_top, b_sum = _softmax_step(
            b_q, b_k, b_v, b_acc, b_top, b_sum, o_m, o_m, o_n, scale, cap, False, CAPPED, PRECISION
        )
    for i in range(split, end):
        o_n = tl.load(tiles + i) * BN + tl.arange(0, BN)
        left, right = _bounds(slices, tl.load(owners + i), o_m)
        b_k = _load(k, o_n, o_d, stride_kt, Tk, D, BD, False)
        b_v = _load(v, o_n, o_d, stride_vt, Tk, D, BD, False)
        b_acc, b_top, b_sum = _softmax_step(
            b_q, b_k, b_v, b_acc, b_top, b_sum, left, right, o_n, scale, cap,
            True, CAPPED, PRECISION,
        )  # fmt: skip
    b_total = tl.where(b_sum == 0.0, 1.0, b_sum)
    b_out = b_acc / b_total[:, None]
    b_lse = tl.where(b_sum == 0.0, -float("inf"), (b_top + tl.log2(b_total)) * 0.6931471805599453)
    _store(out + i_h.to(tl.int64) * D, b_out, o_m, o_d, H * D, Tq, D)
    tl.store(lse + o_m.to(tl.int64) * H + i_h, b_lse, mask=o_m < Tq)


@triton.jit
def _probabilities(
    b_s, b_lse, left, right, o_n, scale, cap,
    MASKED: tl.constexpr, CAPPED: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    """P and the derivative of the cap, from raw products; TURNED: `[N, M]`, else `[M, N]`."""
    b_slope = b_s
    if CAPPED:
        b_tanh = _tanh(b_s * (scale / cap))
        b_s = b_tanh * (cap * 1.4426950408889634)
        b_slope = 1.0 - b_tanh * b_tanh
    else:
        b_s = b_s * (scale * 1.4426950408889634)
    if TURNED:
        b_p = tl.exp2(b_s - (b_lse * 1.4426950408889634)[None, :])
    else:
        b_p = tl.exp2(b_s - (b_lse * 1.4426950408889634)[:, None])
    if MASKED:
        if TURNED:
            inside = (o_n[:, None] >= left[None, :]) & (o_n[:, None] < right[None, :])
        else:
            inside = (o_n[None, :] >= left[:, None]) & (o_n[None, :] < right[:, None])
        b_p = tl.where(inside, b_p, 0.0)
    return b_p, b_slope


@triton.jit
def _dq_step(
    b_q, b_k, b_v, b_do, b_lse, b_delta, b_dq, left, right, o_n, scale, cap,
    MASKED: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b_s = tl.dot(b_q, tl.trans(b_k), input_precision=PRECISION)
    b_p, b_slope = _probabilities(b_s, b_lse, left, right, o_n, scale, cap, MASKED, CAPPED, False)
    b_dp = tl.dot(b_do, tl.trans(b_v), input_precision=PRECISION)
    b_ds = b_p * (b_dp - b_delta[:, None])
    if CAPPED:
        b_ds = b_ds * b_slope
    return tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision=PRECISION)


@triton.jit
def attention_dq(
    q, k, v, d_out, lse, delta, d_q, slices, starts, splits, ends, tiles, owners, order,
    scale, cap, stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, Tq, Tk, H,
    SHARE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d_q `[Tq, H, D]`; lse has +inf in rows that see nothing; grid (query tiles, H)."""
    i_tile = tl.load(order + tl.program_id(0))
    i_h = tl.program_id(1)
    o_m = i_tile * BM + tl.arange(0, BM)
    o_d = tl.arange(0, BD)
    q += i_h.to(tl.int64) * stride_qh
    k += (i_h // SHARE).to(tl.int64) * stride_kh
    v += (i_h // SHARE).to(tl.int64) * stride_vh
    b_q = _load(q, o_m, o_d, stride_qt, Tq, D, BD, False)
    b_do = _load(d_out + i_h.to(tl.int64) * D, o_m, o_d, H * D, Tq, D, BD, False)
    o_row = o_m.to(tl.int64) * H + i_h
    b_lse = tl.load(lse + o_row, mask=o_m < Tq, other=float("inf"))
    b_delta = tl.load(delta + o_row, mask=o_m < Tq, other=0.0)
    b_dq = tl.zeros([BM, BD], tl.float32)
    start, split, end = tl.load(starts + i_tile), tl.load(splits + i_tile), tl.load(ends + i_tile)
    for i in range(start, split):
        o_n = tl.load(tiles + i) * BN + tl.arange(0, BN)
        b_k = _load(k, o_n, o_d, stride_kt, Tk, D, BD, True)
        b_v = _load(v, o_n, o_d, stride_vt, Tk, D, BD, True)
        b_dq = _dq_step(
            b_q, b_k, b_v, b_do, b_lse, b_delta, b_dq, o_m, o_m, o_n, scale, cap,
            False, CAPPED, PRECISION,
        )  # fmt: skip
    for i in range(split, end):
        o_n = tl.load(tiles + i) * BN + tl.arange(0, BN)
        left, right = _bounds(slices, tl.load(owners + i), o_m)
        b_k = _load(k, o_n, o_d, stride_kt, Tk, D, BD, False)
        b_v = _load(v, o_n, o_d, stride_vt, Tk, D, BD, False)
        b_dq = _dq_step(
            b_q, b_k, b_v, b_do, b_lse, b_delta, b_dq, left, right, o_n, scale, cap,
            True, CAPPED, PRECISION,
        )  # fmt: skip
    _store(d_q + i_h.to(tl.int64) * D, b_dq * scale, o_m, o_d, H * D, Tq, D)


@triton.jit
def _dkv_step(
    b_q, b_k, b_v, b_do, b_lse, b_delta, b_dk, b_dv, left, right, o_n, scale, cap,
    MASKED: tl.constexpr, CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    b_s = tl.dot(b_k, tl.trans(b_q), input_precision=PRECISION)  # [BN, BM]
    b_p, b_slope = _probabilities(b_s, b_lse, left, right, o_n, scale, cap, MASKED, CAPPED, True)
    b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv, input_precision=PRECISION)
    b_dp = tl.dot(b_v, tl.trans(b_do), input_precision=PRECISION)
    b_ds = b_p * (b_dp - b_delta[None, :])
    if CAPPED:
        b_ds = b_ds * b_slope
    b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision=PRECISION)
    return b_dk, b_dv


@triton.jit
def attention_dkv(
    q, k, v, d_out, lse, delta, d_k, d_v, slices, starts, splits, ends, tiles, owners, order,
    scale, cap, stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, Tq, Tk, H,
    SHARE: tl.constexpr, D: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
    CAPPED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """d_k and d_v `[Tk, G, D]`, over all query heads of a key head; grid (key tiles, G)."""
    i_tile = tl.load(order + tl.program_id(0))
    i_g = tl.program_id(1)
    o_n = i_tile * BN + tl.arange(0, BN)
    o_d = tl.arange(0, BD)
    b_k = _load(k + i_g.to(tl.int64) * stride_kh, o_n, o_d, stride_kt, Tk, D, BD, False)
    b_v = _load(v + i_g.to(tl.int64) * stride_vh, o_n, o_d, stride_vt, Tk, D, BD, False)
    b_dk = tl.zeros([BN, BD], tl.float32)
    b_dv = tl.zeros([BN, BD], tl.float32)
    start, split, end = tl.load(starts + i_tile), tl.load(splits + i_tile), tl.load(ends + i_tile)
    for i_share in range(SHARE):
        i_h = i_g * SHARE + i_share
        q_h = q + i_h.to(tl.int64) * stride_qh
        do_h = d_out + i_h.to(tl.int64) * D
        for i in range(start, split):
            o_m = tl.load(tiles + i) * BM + tl.arange(0, BM)
            b_q = _load(q_h, o_m, o_d, stride_qt, Tq, D, BD, False)
            b_do = _load(do_h, o_m, o_d, H * D, Tq, D, BD, False)
            o_row = o_m.to(tl.int64) * H + i_h
            b_lse = tl.load(lse + o_row, mask=o_m < Tq, other=float("inf"))
            b_delta = tl.load(delta + o_row, mask=o_m < Tq, other=0.0)
            b_dk, b_dv = _dkv_step(
                b_q, b_k, b_v, b_do, b_lse, b_delta, b_dk, b_dv, o_m, o_m, o_n, scale, cap,
                False, CAPPED, PRECISION,
            )  # fmt: skip
        for i in range(split, end):
            o_m = tl.load(tiles + i) * BM + tl.arange(0, BM)
            left, right = _bounds(slices, tl.load(owners + i), o_m)
            b_q = _load(q_h, o_m, o_d, stride_qt, Tq, D, BD, False)
            b_do = _load(do_h, o_m, o_d, H * D, Tq, D, BD, False)
            o_row = o_m.to(tl.int64) * H + i_h
            b_lse = tl.load(lse + o_row, mask=o_m < Tq, other=float("inf"))
            b_delta = tl.load(delta + o_row, mask=o_m < Tq, other=0.0)
            b_dk, b_dv = _dkv_step(
                b_q, b_k, b_v, b_do, b_lse, b_delta, b_dk, b_dv, left, right, o_n, scale, cap,
                True, CAPPED, PRECISION,
            )  # fmt: skip
    o_out = i_g.to(tl.int64) * D
    G = H // SHARE
    _store(d_k + o_out, b_dk * scale, o_n, o_d, G * D, Tk, D)
    _store(d_v + o_out, b_dv, o_n, o_d, G * D, Tk, D)
