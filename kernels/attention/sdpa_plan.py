"""How a mask is cut for the backend ``sdpa``: segments of one shape together.

Nothing here grows with the square of the sequence: a group holds so many segments, and a segment
whose rows differ so many rows, that its mask and its copy of the keys stay small; and only as many
masks are kept as fit into a fixed room, the others are made in every call.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi_world.kernels.attention.geometry import bounds
from magi_world.kernels.attention.slices import AttnSlices, Segment

# Shape suffixes: B segments in a group.

Runs = list[tuple[int, int]]
"""keys of a segment as ranges [start, end), sorted and apart from each other"""

ROWS = 32, 256
"""fewest and most rows of a segment whose rows see different keys"""
CELLS = 1 << 18
"""most cells of the mask of a group, unless one segment of the fewest rows has more"""
TAKEN = 1 << 13
"""most keys that a group copies, unless the call itself has more"""
KEPT = 1 << 19, 1 << 17
"""cells of masks and indices of keys that are kept with a plan, all groups together"""


@dataclass(frozen=True, eq=False)
class Group:
    """Segments of one shape: B of them, `num_queries` rows and `num_keys` keys each."""

    num_queries: int
    num_keys: int
    count: int
    q_start: int | None
    """first row when the rows of the segments follow each other, else None"""
    q_rows: Tensor
    k_start: int | None
    """first key when the keys of the segments follow each other, else None"""
    runs: Tensor
    """the keys as ranges, first keys and lengths `[2, ranges]`"""
    alike: bool
    """whether all rows of a segment see the same keys"""
    left: Tensor | None
    """None when every row sees every key, else first keys `[B, slices, num_queries or 1]`"""
    right: Tensor | None
    dead: Tensor | None
    """None, or booleans `[B, num_queries]`: rows that see no key"""
    keeps_mask: bool
    """whether there is room to keep its mask"""
    kept_keys: Tensor | None
    """what `key_rows` gives, where there is room to keep it"""
    kept: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def key_rows(self) -> Tensor:
        """Keys of the segments `[B * num_keys]`, one segment after the other."""
        if self.kept_keys is not None:
            return self.kept_keys
        first, length = self.runs
        before = length.cumsum(0) - length
        places = torch.arange(self.count * self.num_keys, device=first.device)
        return places + torch.repeat_interleave(first - before, length, output_size=places.numel())

    def mask(self) -> Tensor | None:
        """None, or booleans `[B, 1, num_queries or 1, num_keys]`: which keys a row sees."""
        if self.left is None or self.right is None:
            return None
        keys = self.key_rows().view(self.count, 1, self.num_keys)
        seen = None
        for left, right in zip(self.left.unbind(1), self.right.unbind(1), strict=True):
            inside = (keys >= left[..., None]).logical_and_(keys < right[..., None])
            seen = inside if seen is None else seen.logical_or_(inside)
        assert seen is not None  # a group without keys is none
        if self.dead is not None:
            # let such a row look at its first key, its output is set to zero afterwards
            seen[..., 0] |= self.dead[:, : seen.shape[1]]
        return seen[:, None]

    def bias(self, dtype: torch.dtype) -> Tensor | None:
        """The mask as numbers to add to the scores, 0 or -inf."""
        kept = self.kept.get(dtype)
        if kept is None:
            with torch.inference_mode(False):
                mask = self.mask()
                if mask is None:
                    return None
                kept = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
                kept.masked_fill_(mask.logical_not_(), -math.inf)
            if self.keeps_mask:
                self.kept[dtype] = kept
        return kept


def _contiguous(rows: NDArray[np.int64]) -> int | None:
    first = int(rows[0]) if rows.size else 0
    return first if np.array_equal(rows, np.arange(first, first + rows.size)) else None


def _joined(spans: Runs) -> Runs:
    """Union of ranges."""
    result: Runs = []
    for start, end in sorted(spans):
        if start >= end:
            continue
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def _key_runs(segment: Segment, key_block: int | None) -> Runs:
    """Keys that the segment works on: its block, or all that one of its rows sees."""
    if key_block is not None:
        start = segment.slices[0][2] // key_block * key_block
        return [(start, start + key_block)]
    if segment.full:
        return _joined([row[2:4] for row in segment.slices])
    left, right = bounds(segment.slices, np.array([segment.start, segment.end - 1]))
    return _joined([(int(a), int(b)) for a, b in zip(left[:, 0], right[:, 1], strict=True)])


def _blocks(slices: AttnSlices) -> Iterator[Segment]:
    """The segments of a mask, those whose rows differ cut into blocks of rows."""
    fewest, most = ROWS
    for segment in slices.segments:
        step = segment.end - segment.start
        if not segment.full:
            keys = sum(row[3] - row[2] for row in segment.slices)
            step = min(most, max(fewest, CELLS // keys))
        for start in range(segment.start, segment.end, step):
            yield Segment(start, min(start + step, segment.end), segment.slices)


def _groups(slices: AttnSlices, device: torch.device) -> list[Group]:
    """Group the segments of a mask by shape."""
    collected: dict[tuple[int, int, bool], list[tuple[Segment, Runs]]] = {}
    for segment in _blocks(slices):
        runs = _key_runs(segment, slices.key_block)
        num_keys = sum(end - start for start, end in runs)
        if num_keys:
            shape = (segment.end - segment.start, num_keys, segment.full)
            collected.setdefault(shape, []).append((segment, runs))
    groups: list[Group] = []
    room = list(KEPT)
    for (num_queries, num_keys, full), members in collected.items():
        masked = not full or slices.key_block is not None
        most = len(members)
        flat = [run for _, runs in members for run in runs]
        if len(_in_order(flat)) > 1:
            most = max(TAKEN, slices.extent()[1]) // num_keys
        if masked:
            most = min(most, CELLS // (num_keys * (1 if full else num_queries)))
        for at in range(0, len(members), max(1, most)):
            part = members[at : at + max(1, most)]
            groups.append(_group((num_queries, num_keys), part, full, masked, room, device))
    return groups


def _in_order(runs: Runs) -> Runs:
    """Ranges with those joined that follow each other as given."""
    result: Runs = []
    for start, end in runs:
        if result and result[-1][1] == start:
            result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


def _group(
    shape: tuple[int, int],
    members: list[tuple[Segment, Runs]],
    full: bool,
    masked: bool,
    room: list[int],
    device: torch.device,
) -> Group:
    """One group; takes what it keeps from the room for masks and for indices."""
    num_queries, num_keys = shape
    q_rows = np.concatenate([np.arange(s.start, s.end) for s, _ in members])
    runs = _in_order([run for _, own in members for run in own])
    left = right = dead = None
    cells = 0
    if masked:
        most, rows = max(len(s.slices) for s, _ in members), 1 if full else num_queries
        cells = len(members) * rows * num_keys
        edges = np.zeros((2, len(members), most, rows), dtype=np.int64)
        for b, (segment, _) in enumerate(members):
            for edge, found in zip(edges, segment.intervals(), strict=True):
                edge[b, : len(segment.slices)] = found[:, :rows]
        left, right = (torch.from_numpy(edge).to(device) for edge in edges)
        none_seen = (edges[0] >= edges[1]).all(1)
        if none_seen.any():
            every_row = np.broadcast_to(none_seen, (len(members), num_queries)).copy()
            dead = torch.from_numpy(every_row).to(device)
    keys = len(members) * num_keys
    keeps_mask, keeps_keys = masked and cells <= room[0], keys <= room[1]
    room[0] -= cells if keeps_mask else 0
    kept_keys = None
    if keeps_keys and (len(runs) > 1 or masked):
        room[1] -= keys
        kept_keys = torch.from_numpy(np.concatenate([np.arange(*run) for run in runs])).to(device)
    table = np.array(runs, dtype=np.int64)
    return Group(
        num_queries, num_keys, len(members),
        _contiguous(q_rows), torch.from_numpy(q_rows).to(device),
        runs[0][0] if len(runs) == 1 else None,
        torch.from_numpy(np.stack([table[:, 0], table[:, 1] - table[:, 0]])).to(device),
        full, left, right, dead, keeps_mask, kept_keys,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Plan:
    """Groups, and where their rows go."""

    groups: list[Group]
    rows: Tensor
    """rows of all groups, one group after the other"""
    whole: bool
    """one group with all rows in order"""


def plan_of(slices: AttnSlices, device: torch.device) -> Plan:
    """The plan of a mask on a device, made once."""
    plans: dict[Any, Any] = slices.plans
    known: Plan | None = plans.get(("sdpa", device))
    if known is None:
        with torch.inference_mode(False):  # kept with the mask, which training may use next
            groups = _groups(slices, device)
            none = torch.empty(0, dtype=torch.int64, device=device)
            rows = torch.cat([none, *(group.q_rows for group in groups)])
        whole = len(groups) == 1 and groups[0].q_start == 0
        known = plans["sdpa", device] = Plan(groups, rows, whole)
    return known
