"""Blocked attention in plain torch, forward and backward: touches only what the mask needs.

Rows are worked on in blocks (:mod:`magi_world.kernels.attention.cpu_plan`); an online softmax joins
the pieces of keys of a block, so memory grows with the number of tokens and never with its square.
Takes every call that the reference takes.
"""

import math

import torch
from torch import Tensor

from magi_world.kernels.attention.autograd import Kernel, Settings, row_delta, run
from magi_world.kernels.attention.cpu_plan import Block, Piece, plan_of
from magi_world.kernels.attention.slices import AttnSlices

# Shape suffixes: T packed tokens, H query heads, G key heads, M query heads of a key head times
# rows of a block, N keys of a piece, D channels.


def _rows(x_THD: Tensor, block: Block, groups: int) -> Tensor:
    """Rows of a block as `[G, M, D]`: the query heads of a key head one after the other."""
    rows = x_THD[block.start : block.end].unflatten(1, (groups, -1))  # [rows, G, H / G, D]
    grouped: Tensor = rows.permute(1, 2, 0, 3).flatten(1, 2)
    return grouped


def _unrows(x_GMD: Tensor, block: Block) -> Tensor:
    """Back to `[rows, H, D]`."""
    heads: Tensor = x_GMD.unflatten(1, (-1, block.end - block.start)).flatten(0, 1)
    return heads.transpose(0, 1)


class _Room:
    """A buffer for one product after the other.

    Memory that is given back and asked for again comes without pages, and putting them in takes a
    good part of the time of the product.
    """

    def __init__(self) -> None:
        self._block: Tensor | None = None

    def bmm(self, a_GMD: Tensor, b_GDN: Tensor) -> Tensor:
        """The product `[G, M, N]`; it overwrites the last one."""
        G, M, N = *a_GMD.shape[:2], b_GDN.shape[2]
        if self._block is None or self._block.numel() < G * M * N:
            self._block = a_GMD.new_empty(G * M * N)
        return torch.bmm(a_GMD, b_GDN, out=self._block[: G * M * N].view(G, M, N))


def _scores(
    q_GMD: Tensor, k_GND: Tensor, piece: Piece, settings: Settings, room: _Room
) -> tuple[Tensor, Tensor | None]:
    """Capped and masked scores `[G, M, N]`, and tanh of the capped ones where there is a cap.

    The queries have been scaled.
    """
    scores = room.bmm(q_GMD, k_GND.mT)
    tanh = None
    if settings.softcap:
        tanh = scores.div_(settings.softcap).tanh_()
        scores = tanh * settings.softcap
    hidden = piece.hidden()
    if hidden is not None:
        scores.unflatten(1, (-1, hidden.shape[0])).masked_fill_(hidden, -math.inf)
    return scores, tanh


def _forward(
    q: Tensor, k: Tensor, v: Tensor, sink_H: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(q.dtype, torch.float32)
    q_THD, k_GTD, v_GTD = q.to(wide), k.to(wide).transpose(0, 1), v.to(wide).transpose(0, 1)
    T, H, _ = q.shape
    G = k.shape[1]
    out = torch.zeros(T, H, v.shape[2], dtype=q.dtype)
    lse = torch.full((T, H), -math.inf, dtype=wide)
    if sink_H is not None:
        lse[:] = sink_H.to(wide)
    blocks: tuple[Block, ...] = settings.plan
    room = _Room()
    for block in blocks:
        if not block.pieces:
            continue
        q_GMD = _rows(q_THD, block, G) * settings.scale
        top = total = acc = None
        if sink_H is not None:  # a sink is a score without a value
            rows = block.end - block.start
            top = sink_H.to(wide).view(G, -1, 1).repeat_interleave(rows, 1)  # [G, M, 1]
            total, acc = torch.ones_like(top), torch.zeros_like(q_GMD)
        for piece in block.pieces:
            scores, _ = _scores(q_GMD, k_GTD[:, piece.start : piece.end], piece, settings, room)
            values = v_GTD[:, piece.start : piece.end]
            new = scores.amax(-1, keepdim=True)
            if piece.left is not None:  # a row that sees nothing: exp(-inf - finite) = 0, not NaN
                new = new.clamp_min(torch.finfo(wide).min)
            if top is None or total is None or acc is None:
                p = scores.sub_(new).exp_()
                total, acc = p.sum(-1, keepdim=True), torch.bmm(p, values)
            else:
                new = torch.maximum(top, new)
                fade = (top - new).exp_()
                p = scores.sub_(new).exp_()
                total = total.mul_(fade).add_(p.sum(-1, keepdim=True))
                acc = acc.mul_(fade).baddbmm_(p, values)
            top = new
        assert top is not None and total is not None and acc is not None
        out[block.start : block.end] = _unrows(acc / total.masked_fill(total == 0, 1.0), block)
        lse[block.start : block.end] = _unrows(top + total.log(), block)[..., 0]
    return out, lse


def _backward(
    d_out: Tensor,
    d_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    settings: Settings,
) -> tuple[Tensor, Tensor, Tensor]:
    wide = lse.dtype
    G = k.shape[1]
    delta_TH1 = row_delta(d_out, d_lse, out)[..., None]
    lse = lse.masked_fill(lse == -math.inf, math.inf)  # exp(s - lse) is 0 where nothing is seen
    q_THD, d_out_THD = q.to(wide), d_out.to(wide)
    k_GTD, v_GTD = k.to(wide).transpose(0, 1), v.to(wide).transpose(0, 1)
    d_q = torch.zeros(q.shape, dtype=q.dtype)
    d_k = torch.zeros(G, *k.shape[::2], dtype=wide)
    d_v = torch.zeros(G, *v.shape[::2], dtype=wide)
    blocks: tuple[Block, ...] = settings.plan
    rooms = _Room(), _Room()
    for block in blocks:
        if not block.pieces:
            continue
        q_GMD = _rows(q_THD, block, G) * settings.scale
        d_GMD = _rows(d_out_THD, block, G)
        lse_GM1, delta_GM1 = (_rows(x, block, G) for x in (lse[..., None], delta_TH1))
        dq_GMD = torch.zeros_like(q_GMD)
        for piece in block.pieces:
            keys = slice(piece.start, piece.end)
            scores, tanh = _scores(q_GMD, k_GTD[:, keys], piece, settings, rooms[0])
            p = scores.sub_(lse_GM1).exp_()
            d_v[:, keys].baddbmm_(p.mT, d_GMD)
            ds = rooms[1].bmm(d_GMD, v_GTD[:, keys].mT).sub_(delta_GM1).mul_(p)
            if tanh is not None:
                ds.mul_(1 - tanh * tanh)
            dq_GMD.baddbmm_(ds, k_GTD[:, keys])
            d_k[:, keys].baddbmm_(ds.mT, q_GMD)
        d_q[block.start : block.end] = _unrows(dq_GMD * settings.scale, block)
    return d_q, d_k.transpose(0, 1).to(k.dtype), d_v.transpose(0, 1).to(v.dtype)


_KERNEL = Kernel(_forward, _backward)


def prepared(
    q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, slices: AttnSlices, scale: float, softcap: float
) -> tuple[Kernel, Settings, tuple[Tensor, Tensor, Tensor]]:
    """The kernel, what it is told, and q, k and v as it reads them."""
    return _KERNEL, Settings(scale, softcap, plan_of(slices, q_THD.shape[1])), (q_THD, k_TGD, v_TGD)


def attention_cpu(
    q_THD: Tensor,
    k_TGD: Tensor,
    v_TGD: Tensor,
    slices: AttnSlices,
    *,
    scale: float,
    softcap: float = 0.0,
    sink: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """See :func:`magi_world.kernels.attention.attention`. Computes in float32, or float64."""
    plan = plan_of(slices, q_THD.shape[1])
    return run(_KERNEL, q_THD, k_TGD, v_TGD, sink, Settings(scale, softcap, plan))
