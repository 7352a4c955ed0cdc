"""Blocked attention in plain torch, forward and backward: touches only what the mask needs.

Rows are worked on in blocks. The keys of a block fall into pieces that all its rows see, where no
mask is applied, and pieces that only some see; an online softmax joins the pieces, so memory grows
with the number of tokens and never with its square. Takes every call that the reference takes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from magi_world.kernels.attention.autograd import Kernel, Settings, row_delta, run
from magi_world.kernels.attention.geometry import Slice, bounds, crop_slice
from magi_world.kernels.attention.slices import AttnSlices

# Shape suffixes: T packed tokens, H query heads, G key heads, M query heads of a key head times
# rows of a block, N keys of a piece, D channels.

ROWS = 256
"""most rows of a block"""
KEYS = 64, 512
"""fewest and most keys of a piece"""
SCORES = 1 << 19
"""most scores of a block, all heads: 2 MiB; few are no work for threads, many leave the cache"""
SMALL = 64
"""neighbouring rows under different slices share a block up to this size"""


@dataclass(frozen=True, eq=False)
class _Piece:
    """Keys [start, end) of a block; `left` and `right` are `[slices, rows]`, None when all see."""

    start: int
    end: int
    left: Tensor | None = None
    right: Tensor | None = None

    def hidden(self) -> Tensor | None:
        """Booleans `[rows, keys]`, True where a row does not see a key."""
        if self.left is None or self.right is None:
            return None
        keys = torch.arange(self.start, self.end, dtype=self.left.dtype)
        inside = (keys >= self.left[..., None]) & (keys < self.right[..., None])
        return ~(inside[0] if inside.shape[0] == 1 else inside.any(0))


@dataclass(frozen=True, eq=False)
class _Block:
    """Rows [start, end) and the pieces of keys that they see."""

    start: int
    end: int
    pieces: tuple[_Piece, ...]


def _cut(start: int, end: int, most: int) -> list[tuple[int, int]]:
    return [(at, min(at + most, end)) for at in range(start, end, most)]


def _blocks(slices: AttnSlices) -> list[tuple[int, int, list[Slice]]]:
    """Row ranges and the slices that touch them."""
    result: list[tuple[int, int, list[Slice]]] = []
    for segment in slices.segments:
        if result and slices.key_block is None:
            start, end, known = result[-1]
            if end == segment.start and segment.end - start <= SMALL:
                more = [row for row in segment.slices if row not in known]
                result[-1] = (start, segment.end, known + more)
                continue
        result += [(a, b, list(segment.slices)) for a, b in _cut(segment.start, segment.end, ROWS)]
    return result


def _masked(edge: tuple[int, int], parts: list[Slice], rows: tuple[int, int]) -> _Piece:
    """A piece that the rows see as far as these slices say."""
    sides = np.zeros((2, len(parts), rows[1] - rows[0]), dtype=np.int32)
    for i, part in enumerate(parts):
        inside = slice(part[0] - rows[0], part[1] - rows[0])
        sides[:, i, inside] = np.concatenate(bounds([part], np.arange(part[0], part[1])))
    return _Piece(*edge, torch.from_numpy(sides[0]), torch.from_numpy(sides[1]))


def _pieces(rows: tuple[int, int], slices: list[Slice], keys: int) -> tuple[_Piece, ...]:
    """Cut the keys where an edge of a slice begins or ends to move over the rows of a block.

    A piece has at most `keys` keys.
    """
    parts = [part for row in slices for part in crop_slice(row, rows, (row[2], row[3]))]
    spans = []  # of each part: where some of the rows see it, and where all do
    for q0, q1, k0, k1, kind in parts:
        first, last = k0 + (kind >> 1) * (q1 - 1 - q0), k1 - (kind & 1) * (q1 - 1 - q0)
        all_see = (q0, q1) == rows and first < last
        spans.append((k0, k1, *((first, last) if all_see else (k0, k0))))
    borders = sorted({edge for span in spans for edge in span})
    full: list[tuple[int, int]] = []
    some: list[tuple[int, int, set[Slice]]] = []
    for a, b in zip(borders, borders[1:], strict=False):
        owners = {part for part, span in zip(parts, spans, strict=True) if span[0] <= a < span[1]}
        if any(span[2] <= a < span[3] for span in spans):
            if full and full[-1][1] == a:
                a = full.pop()[0]
            full.append((a, b))
        elif owners:
            near = some and a - some[-1][1] <= SMALL and (not full or full[-1][1] <= some[-1][0])
            if near:
                a, _, before = some.pop()
                owners |= before
            some.append((a, b, owners))
    result = [_Piece(*edge) for a, b in full for edge in _cut(a, b, keys)]
    for a, b, owners in some:
        for x, y in _cut(a, b, keys):
            touching = sorted(part for part in owners if part[2] < y and x < part[3])
            result.append(_masked((x, y), touching, rows))
    return tuple(result)


def _plan(slices: AttnSlices, heads: int) -> tuple[_Block, ...]:
    fewest, keys = KEYS
    while keys > fewest and heads * ROWS * keys > SCORES:
        keys //= 2
    known: tuple[_Block, ...] | None = slices.plans.get(("cpu", keys))
    if known is None:
        blocks = []
        with torch.inference_mode(False):  # kept with the mask, which training may use next
            for start, end, rows in _blocks(slices):
                if slices.key_block is None:
                    pieces = _pieces((start, end), rows, keys)
                else:  # whole key blocks: the shapes depend on nothing else
                    first = rows[0][2] // slices.key_block * slices.key_block
                    parts = [p for row in rows for p in crop_slice(row, (start, end), row[2:4])]
                    edges = _cut(first, first + slices.key_block, keys)
                    pieces = tuple(_masked(edge, parts, (start, end)) for edge in edges)
                blocks.append(_Block(start, end, pieces))
        known = slices.plans["cpu", keys] = tuple(blocks)
    return known


def _rows(x_THD: Tensor, block: _Block, groups: int) -> Tensor:
    """Rows of a block as `[G, M, D]`: the query heads of a key head one after the other."""
    rows = x_THD[block.start : block.end].unflatten(1, (groups, -1))  # [rows, G, H / G, D]
    grouped: Tensor = rows.permute(1, 2, 0, 3).flatten(1, 2)
    return grouped


def _unrows(x_GMD: Tensor, block: _Block) -> Tensor:
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
    q_GMD: Tensor, k_GND: Tensor, piece: _Piece, settings: Settings, room: _Room
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
    blocks: tuple[_Block, ...] = settings.plan
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
    blocks: tuple[_Block, ...] = settings.plan
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
    return _KERNEL, Settings(scale, softcap, _plan(slices, q_THD.shape[1])), (q_THD, k_TGD, v_TGD)


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
    plan = _plan(slices, q_THD.shape[1])
    return run(_KERNEL, q_THD, k_TGD, v_TGD, sink, Settings(scale, softcap, plan))
