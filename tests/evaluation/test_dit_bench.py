"""`bench dit`: what it counts and how it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from magi_world.checkpoints.published_config import PublishedConfig
from magi_world.config import DiTConfig
from magi_world.errors import CheckpointError, ConfigError
from magi_world.evaluation.dit_bench import bench_dit, padding_flops
from magi_world.evaluation.dit_case import DEFAULT, read_case
from magi_world.sampling.model_passes import ModelPasses

TINY = DiTConfig(
    num_layers=1, hidden_size=16, ffn_hidden_size=32, num_attention_heads=2, num_query_groups=1,
    kv_channels=8, caption_channels=12, caption_max_length=60,
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    config = replace(DEFAULT, dit=TINY, height=32, width=32)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    return path


@pytest.fixture
def quick_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("magi_world.evaluation.dit_bench.matmul_peak", lambda *_: 1e9)


@pytest.mark.usefixtures("quick_peak")
@pytest.mark.parametrize("mode", ["base", "distill"])
def test_savings_leave_less_to_do(file: Path, mode: Any) -> None:
    case = read_case(file, mode=mode, steps=4, chunks=3)
    result = bench_dit(case, caption_tokens=7)
    rows = result["variants"]
    assert result["mode"] == mode and result["step"]["chunks"] == 3
    assert result["flops"] == rows["all_on"]["flops"]
    assert sum(result["flops"].values()) == pytest.approx(rows["all_on"]["flops_per_chunk"])
    for name, row in rows.items():
        assert row["seconds_per_chunk"] > 0 and row["peak_bytes"] > 4 * result["parameters"]
        assert row["flops_per_chunk"] >= rows["all_on"]["flops_per_chunk"], name
    captions = (rows[name]["flops"]["captions"] for name in ("all_on", "without_caption_kv"))
    assert next(captions) < next(captions)
    if mode == "base":
        skipped = rows["without_skip_passes"]
        assert skipped["chunk_passes"] > rows["all_on"]["chunk_passes"]
        assert rows["as_published"]["chunk_passes"] > rows["all_off"]["chunk_passes"]
    for row in rows.values():
        assert row["flops_ratio_padded"] < row["flops_ratio"]


def test_the_released_code_projects_padding_in_every_pass() -> None:
    passes = ModelPasses(denoising={"null": 3}, clean=1)
    passes.add_caption(TINY, 7)
    row = 2 * TINY.hidden_size * TINY.caption_channels
    assert padding_flops(TINY, passes) == (4 * 60 - 7) * row


def test_the_default_counts_as_written() -> None:
    case = read_case(None)
    assert (case.size, case.mode, case.num_chunks) == ((16, 6, 16, 16), "base", 4)
    assert (case.tokens_per_chunk, case.least_steps) == (384, 4)
    assert PublishedConfig.from_dict(DEFAULT.to_dict()) == DEFAULT


def test_what_cannot_be_timed_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no file"):
        read_case(tmp_path / "absent.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(ConfigError, match="neither a published configuration"):
        read_case(tmp_path / "other.json")
    with pytest.raises(ConfigError, match="window 3 does not divide"):
        read_case(file, window=3)
