"""MAGI-1's configuration file: every field in and out, nothing unknown, nothing contradictory."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magi_world.checkpoints.published_config import (
    PublishedConfig,
    read_published_config,
    write_published_config,
)
from magi_world.checkpoints.random_presets import random_preset
from magi_world.config import WorldConfig
from magi_world.errors import CheckpointError, ConfigError
from magi_world.planning.presets import PRESETS
from tests.golden.cases import DATA


def document(preset: str = "tiny") -> dict[str, Any]:
    made: dict[str, Any] = random_preset(preset).config.to_dict()
    return json.loads(json.dumps(made))  # type: ignore[no-any-return]


@pytest.mark.parametrize("preset", ["tiny", "tiny-distill", "tiny-distill-fp8", *PRESETS])
def test_a_file_comes_back_as_it_was(preset: str, tmp_path: Path) -> None:
    config = random_preset(preset).config
    write_published_config(config, tmp_path / "c.json")
    again = read_published_config(tmp_path / "c.json")
    assert again == config
    assert json.loads((tmp_path / "c.json").read_text()) == again.to_dict()
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_a_file_has_every_field_that_the_released_code_asks_for() -> None:
    sections = document()
    assert {name: len(fields) for name, fields in sections.items()} == {
        "model_config": 22, "runtime_config": 21, "engine_config": 12,
    }  # fmt: skip


def test_shorter_sections_are_read_with_defaults() -> None:
    case = json.loads((DATA / "sampling" / "t2v_w4_s8.json").read_text())
    config = PublishedConfig.from_dict(case["config"])
    assert config.magi1.window == 4 and config.magi1.distributed_backend == "gloo"
    assert (config.height, config.width, config.magi1.num_frames) == (32, 48, 72)
    assert config.magi1.seed == 1234 and config.load == ""
    without = document()
    del without["runtime_config"]["t5_device"]  # older files lack it
    assert PublishedConfig.from_dict(without).magi1.t5_device == "cpu"


@pytest.mark.parametrize(
    ("preset", "folder"),
    [
        ("tiny", "inference_weight"),
        ("tiny-distill", "inference_weight.distill"),
        ("tiny-distill-fp8", "inference_weight.fp8.distill"),
    ],
)
def test_the_folder_of_the_weights(preset: str, folder: str) -> None:
    assert random_preset(preset).config.weight_folder == folder


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("runtime_config", {"cfg_number": 1}, "cfg_number 1 contradicts distill False.*must be 3"),
        ("engine_config", {"distill": True}, "cfg_number 3 contradicts distill True.*must be 1"),
        ("engine_config", {"fp8_quant": True}, "fp8_quant True: it must be 1"),
        ("runtime_config", {"window_size": 3}, r"window 3 does not divide .* \[1, 2, 4, 8\]"),
        ("runtime_config", {"num_steps": 10, "window_size": 2}, "not a multiple of the 4 stages"),
        ("runtime_config", {"video_size_h": 72}, "72x64 pixels: .*multiples of 16"),
        ("runtime_config", {"video_size_w": "64"}, "width '64'"),
        ("runtime_config", {"cfg_number": 2}, r"cfg_number 2 is not one of \(1, 3\)"),
        ("runtime_config", {"text_scales": [7.5]}, "text_scales has 1 entries, cfg_t_range 5"),
        ("runtime_config", {"cfg_t_range": [0, 1, 0.5, 2, 3]}, "must begin with 0 and rise"),
        ("runtime_config", {"noise2clean_kvrange": [5, 0]}, "noise2clean_kvrange"),
        ("runtime_config", {"clean_chunk_kvrange": 0}, "clean_chunk_kvrange 0"),
        ("runtime_config", {"clean_t": 2.0}, "clean_t 2.0 is outside"),
        ("runtime_config", {"seed": -1}, "seed -1"),
        ("runtime_config", {"windowsize": 4}, r"runtime_config: unknown fields \['windowsize'\]"),
        ("engine_config", {"num_steps": 4}, r"engine_config: unknown fields \['num_steps'\]"),
        ("engine_config", {"shortcut_mode": "8,8"}, "shortcut_mode '8,8'"),
        ("engine_config", {"distill": "yes"}, "distill 'yes': true or false"),
        ("model_config", {"num_layer": 4}, r"model_config: unknown fields \['num_layer'\]"),
        ("model_config", {"params_dtype": "int8"}, "params_dtype 'int8'"),
        ("model_config", {"hidden_size": 60}, "hidden_size 60"),
    ],
)
def test_what_cannot_work_is_refused(section: str, changes: dict[str, Any], words: str) -> None:
    changed = document()
    changed[section] |= changes
    with pytest.raises(ConfigError, match=words):
        PublishedConfig.from_dict(changed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("engine_config"), r"lacks the sections \['engine_config'\]"),
        (lambda d: d.update(extra={}), r"unknown sections \['extra'\]"),
        (lambda d: d.update(engine_config=[]), "engine_config is no JSON object"),
        (lambda d: d["runtime_config"].pop("num_steps"), r"lacks \['num_steps'\]"),
    ],
)
def test_sections(change: Any, words: str) -> None:
    changed = document()
    change(changed)
    with pytest.raises(ConfigError, match=words):
        PublishedConfig.from_dict(changed)


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no file .*absent\.json"):
        read_published_config(tmp_path / "absent.json")
    path = tmp_path / "c.json"
    path.write_text("{")
    with pytest.raises(CheckpointError, match=r"c\.json is no JSON"):
        read_published_config(path)
    path.write_text("[]")
    with pytest.raises(ConfigError, match=r"c\.json: the configuration is no JSON object"):
        read_published_config(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 2000) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(st.data())
def test_any_value_of_any_field_is_read_or_refused_by_name(data: st.DataObject) -> None:
    changed = document()
    section = data.draw(st.sampled_from(sorted(changed)))
    field = data.draw(st.sampled_from(sorted(changed[section])))
    changed[section][field] = data.draw(json_values)
    try:
        config = PublishedConfig.from_dict(changed)
    except ConfigError:
        return
    assert PublishedConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(steps=st.integers(1, 130), window=st.integers(1, 20), stages=st.integers(0, 6))
def test_steps_window_and_stages(steps: int, window: int, stages: int) -> None:
    changed = document()
    changed["runtime_config"] |= {
        "num_steps": steps, "window_size": window, "noise2clean_kvrange": [3] * stages,
    }  # fmt: skip
    fits = steps % window == 0 and (stages == 0 or steps % stages == 0)
    if fits:
        assert PublishedConfig.from_dict(changed).magi1.num_steps == steps
    else:
        with pytest.raises(ConfigError):
            PublishedConfig.from_dict(changed)


def test_world_configurations_carry_the_settings(official: dict[str, Path]) -> None:
    from magi_world.world import load
    from tests.checkpoints.official import UNCACHED

    config = load(official["tiny-distill"], parts=UNCACHED).config
    assert config.magi1 is not None and config.magi1.distill
    assert WorldConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
