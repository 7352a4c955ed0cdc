"""What the kernel benchmark reports, on sizes that take no time."""

from typing import Any

import pytest
import torch

from magi_world.cli.kernel_tables import print_kernels
from magi_world.evaluation import attention_bench, kernel_bench
from magi_world.evaluation.attention_bench import MEMORY_MASKS, gpu_masks, memory_growth


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
        "FP8 quantise", "FP8 product",
    }  # fmt: skip
    assert all(row["gb_s"] > 0 and row["form"] == "reference" for row in result["fused"])
    for name in ("eager", "registered"):
        assert result["dispatch"][f"{name}_ratio_whole"] > 0


def test_what_is_absent_is_printed(
    result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    print_kernels(result)
    printed = capsys.readouterr().out
    assert "absent: there is no CUDA device" in printed
    row = {"mask": "causal", "tokens": 64, "backend": "flash4", "absent": "no such package"}
    print_kernels({**result, "attention_gpu": [row]})
    assert "no such package" in capsys.readouterr().out


@pytest.mark.parametrize("mask", MEMORY_MASKS)
@pytest.mark.parametrize("backend", ["cpu", "sdpa"])
def test_memory_grows_with_the_tokens(backend: str, mask: str) -> None:
    for backward in (False, True):  # the first call, which makes the plan
        found = memory_growth(backend, mask, 4096, backward=backward)
        assert found["growth"] < 2.2, found


def test_memory_of_a_dense_mask_does_not() -> None:
    assert memory_growth("reference", tokens=512)["growth"] > 3.5


def test_the_form_of_a_fused_operation_is_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU without triton runs the references."""
    monkeypatch.setattr(kernel_bench, "CPU_FUSED", (64, 64, 16))
    monkeypatch.setattr(
        kernel_bench, "chosen", lambda backend, x: f"{backend} for {tuple(x.shape)}"
    )
    monkeypatch.setattr(kernel_bench, "fp8_refuses", lambda device, dtype: None)
    monkeypatch.setattr(kernel_bench, "median_seconds", lambda *_, **__: 1.0)
    forms = {
        row["operation"]: row["form"]
        for row in kernel_bench.bench_fused(torch.device("cpu"))["fused"]
    }
    assert forms.pop("FP8 quantise") == "triton"
    assert forms.pop("FP8 product") == "reference"
    assert set(forms.values()) == {"auto for (64, 64)"}


def test_the_class_of_a_machine_is_its_fastest_kernel() -> None:
    rows: list[dict[str, Any]] = [
        {"mask": "full", "tokens": 64, "backend": name, "forward_tflops": speed}
        for name, speed in (("sdpa flash", 2.0), ("cudnn", 8.0), ("flash4", 4.0), ("triton", 6.0))
    ]
    rows.append({"mask": "causal", "tokens": 64, "backend": "triton", "backward_tflops": 1.0})
    attention_bench._relate(rows)
    assert [row.get("forward_of_fa") for row in rows] == [0.25, 1.0, 0.5, 0.75, None]
    assert "backward_of_fa" not in rows[-1]


def test_masks_of_the_gpu_table() -> None:
    masks = gpu_masks(4096)
    assert masks["block-causal"].area() == 36 * 512 * 512
    assert masks["MAGI window"].extent() == (2048, 4096)
    assert masks["MAGI window"].area() == 4 * 5 * 512 * 512
    assert masks["sliding window"].area() < masks["causal"].area() < masks["full"].area()
