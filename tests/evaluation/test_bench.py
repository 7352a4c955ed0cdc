"""The benches: flat memory, constant work a step, and rows that hold together."""

from typing import Any

import pytest
from torch import Tensor

from magi_world.evaluation import bench
from magi_world.kernels.attention import AttnSlices
from magi_world.models import layers
from magi_world.world import World


def test_memory_stays_flat_and_work_constant(
    tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short form of `magi-world bench rollout`; times are printed by the bench only."""
    calls: list[tuple[int, ...]] = []
    original = layers.attention

    def counted(q: Tensor, k: Tensor, v: Tensor, slices: AttnSlices, **options: Any) -> Any:
        calls.append((*q.shape, *k.shape))
        return original(q, k, v, slices, **options)

    monkeypatch.setattr(layers, "attention", counted)
    result = bench.bench_rollout(tiny_world, chunks=400)
    assert result["memory_ratio"] < 1.02
    assert (result["early_at_chunk"], result["span"]) == (200, 100)

    opening, work = len(calls) % 400, calls[len(calls) % 400 :]
    assert opening  # the opening's clean pass
    per_step = len(work) // 400
    captions = {calls[i][3] for i in range(len(calls)) if calls[i][0] != calls[0][0]}
    assert len(captions) <= 1 or per_step
    shapes = [tuple(work[i * per_step : (i + 1) * per_step]) for i in range(400)]
    self_attention = [[call for call in step if call[3] == work[0][3]] for step in shapes]
    assert all(step == self_attention[0] for step in self_attention)
