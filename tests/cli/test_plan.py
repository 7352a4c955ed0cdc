"""`magi-world plan`: numbers for people and for machines."""

from pathlib import Path

import pytest

from magi_world.checkpoints.random_presets import random_preset
from tests.cli.conftest import Run


@pytest.mark.parametrize(
    ("model", "size", "parameters", "tokens"),
    [
        ("magi1-4.5b", "480x832", 4_459_898_128, 9360),
        ("magi1-4.5b-distill-fp8", "720x720", 4_459_898_128, 12150),
        ("magi1-24b", "720x1280", 23_899_281_936, 21600),
        ("magi1-24b-distill", "480x640", 23_899_281_936, 7200),
    ],
)
def test_presets_are_planned(model: str, size: str, parameters: int, tokens: int, run: Run) -> None:
    result = run("plan", "--model", model, "--size", size, "--json")
    assert result.code == 0 and result.err == ""
    data = result.data
    assert data["parameters"] == parameters and data["tokens_per_chunk"] == tokens
    assert data["model"] == model
    assert data["memory"]["total"] == sum(
        value for name, value in data["memory"].items() if name != "total"
    )
    assert set(data["fits"].values()) <= {True, False}


def test_a_folder_is_planned(run: Run, tmp_path: Path, tiny_world_path: Path) -> None:
    random_preset("tiny").write(tmp_path / "tiny")
    data = run("plan", "--model", tmp_path / "tiny", "--json").data
    assert data["parameters"] == 216_050 and data["height"] == 64 and data["window"] == 4
    data = run("plan", "--model", tiny_world_path, "--json").data
    assert data["window"] == 1 and data["fits"]["12 GiB"]


def test_people_get_tables(run: Run) -> None:
    result = run("plan", "--model", "magi1-4.5b", "--size", "480x832", "--gpu-memory", "24")
    assert result.code == 0
    for words in ("4,459,898,128", "9,360", "1243.1 MiB a chunk, 8 chunks", "24 GiB", "PFLOP"):
        assert words in result.out
    assert "text encoder" in result.err
    moved = run(
        "plan", "--model", "magi1-24b", "--offload", "kv", "--offload", "layers", "--gpus", "2",
        "--pipeline", "2",
    )  # fmt: skip
    assert "in host memory" in moved.out and "2 in 2 groups" in moved.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model"),
        (["--model", "magi1-7b"], "magi1-24b-distill-fp8"),
        (["--model", "magi1-4.5b", "--size", "480"], "HEIGHTxWIDTH"),
        (["--model", "magi1-4.5b", "--size", "481x832"], "481x832"),
        (["--model", "magi1-4.5b", "--window", "3"], "window 3"),
        (["--model", "magi1-4.5b", "--window", "0"], "window 0"),
        (["--model", "magi1-4.5b", "--cfg", "2"], "cfg 2"),
        (["--model", "magi1-4.5b", "--gpus", "3"], "3 devices"),
        (["--model", "magi1-4.5b", "--kv-range", "5,a"], "5,a"),
        (["--model", "magi1-4.5b", "--offload", "vae"], "vae"),
        (["--model", "magi1-4.5b", "--gpu-memory", "-1"], "--gpu-memory"),
    ],
)
def test_a_wrong_argument_ends_with_one_line(arguments: list[str], words: str, run: Run) -> None:
    result = run("plan", *arguments)
    assert result.code == 2 and result.out == ""
    (line,) = result.err.splitlines()
    assert words in line
