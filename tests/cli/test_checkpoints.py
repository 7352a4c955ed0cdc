"""The verbs `make-checkpoint` and `calibrate`."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import magi_world
from magi_world.cli.checkpoints import parse_bytes
from magi_world.disk import check_disk
from magi_world.errors import ConfigError
from tests.checkpoints.official import UNCACHED, write_official


def test_counting_allocates_and_writes_nothing(run: Any) -> None:
    done = run("make-checkpoint", "--preset", "magi1-4.5b", "--meta", "--json")
    assert done.code == 0
    assert done.data["parameters"] == 4_459_898_128 and done.data["tensors"] == 898


def test_making_a_checkpoint(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "made"
    done = run(
        "make-checkpoint", str(out), "--preset", "tiny-distill", "--shard-size", "200KB", "--zst",
        "--json",
    )  # fmt: skip
    assert done.code == 0 and str(out) in done.err
    world = magi_world.load(out, parts=UNCACHED)
    assert sum(p.numel() for p in world.dit.parameters()) == done.data["parameters"]
    assert len(list((out / "inference_weight.distill").glob("*.zst"))) > 1
    done = run("make-checkpoint", str(out))
    assert done.code == 2 and "holds a checkpoint already" in done.err


def test_any_configuration(run: Any, tmp_path: Path) -> None:
    write_official(tmp_path / "a")
    config = tmp_path / "a" / "config.json"
    document = json.loads(config.read_text())
    document["model_config"] |= {"num_layers": 2, "half_channel_vae": True, "in_channels": 32,
                                 "out_channels": 32, "gated_linear_unit": True}  # fmt: skip
    (tmp_path / "c.json").write_text(json.dumps(document))
    done = run(
        "make-checkpoint", str(tmp_path / "b"), "--config", str(tmp_path / "c.json"), "--no-text",
        "--vae", str(tmp_path / "a" / "vae"),
    )  # fmt: skip
    assert done.code == 0
    world = magi_world.load(tmp_path / "b", parts=UNCACHED)
    assert world.text is None and world.config.dit.num_layers == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "either a folder to write is needed, or --meta"),
        (["x", "--meta"], "either a folder to write is needed, or --meta"),
        (["x", "--preset", "huge"], "preset 'huge' is not one of tiny, tiny-distill"),
        (["x", "--shard-size", "many"], "size 'many'"),
        (["x", "--config", "absent.json"], "there is no file absent.json"),
    ],
)
def test_wrong_arguments(arguments: list[str], words: str, run: Any) -> None:
    done = run("make-checkpoint", *arguments)
    assert done.code == 2 and words in done.err and done.out == ""


def test_sizes() -> None:
    assert parse_bytes("5GB") == 5_000_000_000 and parse_bytes("500 kb") == 500_000
    for wrong in ("5", "GB", "-1GB", "0B", "1.5GB"):
        with pytest.raises(ConfigError, match="a whole number"):
            parse_bytes(wrong)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    check_disk(tmp_path / "a" / "b", 1)
    with pytest.raises(ConfigError, match=r"1000000000.00 GB of disk needed under .*a, .* GB free"):
        check_disk(tmp_path / "a", 10**18)


def test_calibrating(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = write_official(tmp_path / "tiny-distill", "tiny-distill")
    (tmp_path / "prompts.txt").write_text("A cat walks along the beach.\n")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (80, 60), (200, 30, 30)).save(tmp_path / "images" / "red.png")
    out = tmp_path / "fp8"
    arguments = [
        "calibrate", "--model", str(model), "--out", str(out), "--frames", "24", "--checked", "1",
        "--prompts", str(tmp_path / "prompts.txt"), "--images", str(tmp_path / "images"),
    ]  # fmt: skip
    done = run(*arguments, "--json")
    assert done.code == 0, done.err
    assert [row["layer"] for row in done.data["layers"]] == [1, 2]
    assert done.data == json.loads((out / "calibration.json").read_text())
    assert "observing video 1 of 1" in done.err
    world = magi_world.load(out, parts=UNCACHED)
    assert world.config.magi1 is not None and world.config.magi1.fp8_quant

    done = run(*arguments)
    assert done.code == 2 and "holds a checkpoint already" in done.err
    write_official(tmp_path / "base")
    arguments[2], arguments[4] = str(tmp_path / "base"), str(tmp_path / "other")
    done = run(*arguments)
    assert done.code == 2 and "a base model has no FP8 form" in done.err
    assert not (tmp_path / "other").exists()
