"""How a mask is cut for the backend ``sdpa``: segments of one shape together."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi_world.kernels.attention.geometry import bounds
from magi_world.kernels.attention.slices import AttnSlices, Segment

# Shape suffixes: B segments in a group.

ROWS = 256
"""most rows of a segment whose rows see different keys"""
KEPT = 1 << 20
"""cells up to which the mask of a group is kept; larger ones are made in every call"""


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
    k_rows: Tensor
    alike: bool
    """whether all rows of a segment see the same keys"""
    left: Tensor | None
    """None when every row sees every key, else first keys `[B, slices, num_queries or 1]`"""
    right: Tensor | None
    dead: Tensor | None
    """None, or booleans `[B, num_queries]`: rows that see no key"""
    kept: dict[torch.dtype, Tensor] = field(default_factory=dict)

    def mask(self) -> Tensor | None:
        """None, or booleans `[B, 1, num_queries or 1, num_keys]`: which keys a row sees."""
        if self.left is None or self.right is None:
            return None
        keys = self.k_rows.view(self.count, 1, 1, self.num_keys)
        seen = ((keys >= self.left[..., None]) & (keys < self.right[..., None])).any(1)
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
                kept.masked_fill_(~mask, -math.inf)
            if kept.numel() <= KEPT:
                self.kept[dtype] = kept
        return kept


def _contiguous(rows: NDArray[np.int64]) -> int | None:
    first = int(rows[0]) if rows.size else 0
    return first if np.array_equal(rows, np.arange(first, first + rows.size)) else None


def _key_rows(segment: Segment, key_block: int | None) -> NDArray[np.int64]:
    """Key rows that the segment works on: its block, or all rows that one of its rows sees."""
    if key_block is not None:
        block = segment.slices[0][2] // key_block
        return np.arange(block * key_block, (block + 1) * key_block)
    if segment.full:  # sorted by first key and apart from each other
        return np.concatenate([np.arange(row[2], row[3]) for row in segment.slices])
    left, right = bounds(segment.slices, np.array([segment.start, segment.end - 1]))
    spans = [np.arange(a, b) for a, b in zip(left[:, 0], right[:, 1], strict=True)]
    return np.unique(np.concatenate(spans))


def _blocks(slices: AttnSlices) -> list[Segment]:
    """The segments of a mask, those whose rows differ cut into blocks of rows."""
    result = []
    for segment in slices.segments:
        most = segment.end - segment.start if segment.full else ROWS
        for start in range(segment.start, segment.end, most):
            result.append(Segment(start, min(start + most, segment.end), segment.slices))
    return result


def _groups(slices: AttnSlices, device: torch.device) -> list[Group]:
    """Group the segments of a mask by shape."""
    collected: dict[tuple[int, int, int], list[tuple[Segment, NDArray[np.int64]]]] = {}
    for segment in _blocks(slices):
        keys = _key_rows(segment, slices.key_block)
        if keys.size:
            shape = (segment.end - segment.start, keys.size, int(segment.full))
            collected.setdefault(shape, []).append((segment, keys))
    groups = []
    for (num_queries, num_keys, full), members in collected.items():
        q_rows = np.concatenate([np.arange(s.start, s.end) for s, _ in members])
        k_rows = np.concatenate([keys for _, keys in members])
        left = right = dead = None
        if not full or slices.key_block is not None:
            most = max(len(segment.slices) for segment, _ in members)
            rows = 1 if full else num_queries
            edges = np.zeros((2, len(members), most, rows), dtype=np.int64)
            for b, (segment, _) in enumerate(members):
                for edge, found in zip(edges, segment.intervals(), strict=True):
                    edge[b, : len(segment.slices)] = found[:, :rows]
            left, right = (torch.from_numpy(edge).to(device) for edge in edges)
            none_seen = (edges[0] >= edges[1]).all(1)
            if none_seen.any():
                every_row = np.broadcast_to(none_seen, (len(members), num_queries)).copy()
                dead = torch.from_numpy(every_row).to(device)
        groups.append(
            Group(
                num_queries, num_keys, len(members),
                _contiguous(q_rows), torch.from_numpy(q_rows).to(device),
                _contiguous(k_rows), torch.from_numpy(k_rows).to(device),
                bool(full), left, right, dead,
            )
        )  # fmt: skip
    return groups


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
