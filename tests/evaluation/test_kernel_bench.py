"""What the kernel benchmark reports, on sizes that take no time."""

from typing import Any

import pytest
import torch

from magi_world.cli.kernel_tables import print_kernels
from magi_world.evaluation import attention_bench, kernel_bench
from magi_world.evaluation.attention_bench import gpu_masks, memory_growth


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_bench, "CPU_TOKENS", 256)
        patch.setattr(attention_bench, "CPU_HEADS", 2)
        patch.setattr(kernel_bench, "CPU_FUSED", (64, 64, 16))
        patch.setattr(kernel_bench, "ROUNDS", 1)
        patch.setattr(kernel_bench, "matmul_peak", lambda *_, **__: 1e12)
        return kernel_bench.bench_kernels(torch.device("cpu"), budget=0.0)


def test_every_number_is_there(result: dict[str, Any]) -> None:
    rows = {row["backend"]: row for row in result["attention_cpu"]["rows"]}
    assert set(rows) == {"sdpa with a dense mask", "cpu", "sdpa", "flex"}
    for name in ("cpu", "sdpa"):
        assert rows[name]["forward_ms"] > 0 and rows[name]["forward_speedup"] > 0
        assert "backward_ms" in rows[name]
    assert "backward_ms" not in rows["flex"]
    assert result["attention_cpu"]["ceiling"] == pytest.approx(64 / 36)
    assert result["attention_gpu"] is None
    assert {row["operation"] for row in result["fused"]} == {
        "gate, norm, residual", "norm, rotary", "norm, rotary, cache", "SiLU, multiply",
        "FP8 quantise",
    }  # fmt: skip
    assert all(row["gb_s"] > 0 and row["form"] == "reference" for row in result["fused"])
    for name in ("eager", "registered"):
        assert result["dispatch"][f"{name}_ratio"] > 0


def test_what_is_absent_is_printed(
    result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_kernels(result)
    printed = capsys.readouterr().out
    assert "absent: there is no CUDA device" in printed
    row = {"mask": "causal", "tokens": 64, "backend": "flash4", "absent": "no such package"}
    print_kernels({**result, "attention_gpu": [row]})
    assert "no such package" in capsys.readouterr().out


def test_memory_of_the_blocked_backend_is_linear() -> None:
    assert memory_growth("cpu", 2048)["growth"] < 2.5
    assert memory_growth("reference", 512)["growth"] > 3.5


def test_masks_of_the_gpu_table() -> None:
    masks = gpu_masks(4096)
    assert masks["block-causal"].area() == 36 * 512 * 512
    assert masks["MAGI window"].extent() == (2048, 4096)
    assert masks["MAGI window"].area() == 4 * 5 * 512 * 512
    assert masks["sliding window"].area() < masks["causal"].area() < masks["full"].area()
