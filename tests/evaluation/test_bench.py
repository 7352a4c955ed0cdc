"""The benches: flat memory, constant work a step, and rows that hold together."""

import mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_world.evaluation import bench
from magi_world.kernels.attention import AttnSlices, attention
from magi_world.models import inplace
from magi_world.world import World, load


def test_memory_stays_flat_and_work_constant(
    tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short form of `magi-world bench rollout`; times are printed by the bench only."""
    shapes: list[tuple[int, ...]] = []

    def recorded(q: Tensor, k: Tensor, v: Tensor, slices: AttnSlices, **options: Any) -> Any:
        shapes.append((*q.shape, *k.shape))
        return attention(q, k, v, slices, **options)

    monkeypatch.setattr(inplace, "attention", recorded)
    result = bench.bench_rollout(tiny_world, chunks=300)
    assert result["memory_ratio"] < 1.02
    assert (result["early_at_chunk"], result["span"]) == (150, 75)

    own = shapes[0::2]  # a layer attends to the cache, then to the captions, whose length varies
    forwards = tiny_world.config.sampling.num_steps + 1
    num_layers = tiny_world.config.dit.num_layers
    opening = num_layers  # one clean pass
    assert len(own) == opening + 300 * forwards * num_layers
    assert len(set(own[opening:])) == 1
    assert own[-1][0] == tiny_world.config.tokens_per_chunk


def test_a_short_run_compares_what_it_has(tiny_world: World) -> None:
    said: list[str] = []
    result = bench.bench_rollout(tiny_world, chunks=4, say=said.append)
    assert (result["chunks"], result["early_at_chunk"], result["span"]) == (4, 2, 1)
    assert result["step_ms_end"] > 0 and said == []
    with pytest.raises(ValueError, match="at least 4"):
        bench.bench_rollout(tiny_world, chunks=3)


def test_rows_hold_together(tiny_world_path: Path) -> None:
    said: list[str] = []
    rows = bench.bench_env(lambda: load(tiny_world_path), [1, 3], chunks=4, say=said.append)
    assert [row["num_envs"] for row in rows] == [1, 3]
    for row in rows:
        assert 0 < row["peak_share"] < 1
        assert row["p50_ms"] <= row["p95_ms"] and row["latent_p50_ms"] <= row["latent_p95_ms"]
        assert row["times_real_rate"] == pytest.approx(row["frames_per_s"] / row["num_envs"] / 35)
        assert row["cold_start_s"] > 0
        assert row["denoising_steps"] == 2
        assert row["dtype"] == "float32"
        assert row["mflop_per_chunk"] == pytest.approx(
            1e3 * row["gflop_per_step"] / row["num_envs"]
        )
        assert "profile" not in row
    assert rows[1]["gflop_per_step"] == pytest.approx(3 * rows[0]["gflop_per_step"], rel=0.3)
    assert len({row["peak_gflops"] for row in rows}) == 1
    assert said[0].startswith("matmul peak")
    with pytest.raises(ValueError, match="at least 1"):
        bench.bench_slots(lambda: load(tiny_world_path), 0)


def test_a_row_can_have_a_profile(tiny_world_path: Path) -> None:
    row = bench.bench_slots(lambda: load(tiny_world_path), 1, chunks=1, steps=1, profiled=2)
    assert row["denoising_steps"] == 1 and row["peak_share"] is None
    assert row["profile"]["steps"] == 2


def test_the_peak_is_that_of_the_worlds_dtype(
    tiny_world_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = {torch.bfloat16: 2e12}  # measured in earnest it takes minutes on some processors
    monkeypatch.setattr(bench, "matmul_peak", lambda device, dtype: peaks[dtype])
    said: list[str] = []
    (row,) = bench.bench_env(
        lambda: load(tiny_world_path, dtype="bfloat16"), [1], chunks=1, steps=1, say=said.append
    )
    assert (row["dtype"], row["peak_gflops"]) == ("bfloat16", 2000)
    assert "torch.bfloat16, 1 threads" in said[0]


def test_flops_are_counted_and_the_rollout_goes_on(tiny_world: World) -> None:
    rollout = tiny_world.rollout(2, seeds=[0, 1])
    rollout.reset()
    before = [p.requires_grad for m in tiny_world.modules().values() for p in m.parameters()]
    one = bench.step_flops(rollout, ["strafe left"] * 2)
    two = bench.step_flops(rollout, ["strafe left"] * 2)
    assert one == two > 0
    assert rollout.chunk_index.tolist() == [2, 2]
    assert before == [
        p.requires_grad for m in tiny_world.modules().values() for p in m.parameters()
    ]


def test_fused_attention_is_counted_on_the_cpu() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    q = torch.randn(1, 2, 8, 4)
    counter = FlopCounterMode(display=False, custom_mapping=bench.cpu_attention_flops())
    with counter, torch.inference_mode():
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)
    assert counter.get_total_flops() == 2 * (2 * 2 * 8 * 8 * 4)


def test_the_peak_is_a_rate_of_the_best_size() -> None:
    peak = bench.matmul_peak(torch.device("cpu"), torch.float32, sizes=(16, 256), repeats=2)
    assert peak > bench.matmul_peak(torch.device("cpu"), torch.float32, sizes=(16,), repeats=1) / 2


def test_resident_memory_sees_what_is_allocated() -> None:
    before = bench.resident_bytes()
    # pages of its own: an array could land in memory that the process holds already
    with mmap.mmap(-1, 40 * 2**20) as block:
        block.write(b"x" * len(block))
        assert bench.resident_bytes() - before > 30 * 2**20
