"""Self-play from the command line: training, scoring in real games, and what is refused."""

import json
from pathlib import Path

import pytest

from magi_world.cli import main
from tests.tiny_duel import make_tiny_duel

QUICK = [
    "num_slots=4", "num_steps=4", "horizon=3", "channels=[4,4]", "hidden=8", "epochs=1",
    "minibatches=2", "history=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def duel(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("worlds") / "duel"
    make_tiny_duel().save(folder)
    return str(folder)


def test_an_agent_learns_by_self_play_and_plays_real_games(
    duel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("multi_agent_ale_py")
    pytest.importorskip("ale_py")
    out = str(tmp_path / "agent")
    settings = [word for setting in QUICK for word in ("--set", setting)]
    words = ["train-agent", "--self-play", "--world", duel, "--out", out, "--steps", "32"]
    assert main([*words, *settings]) == 0
    capsys.readouterr()
    words = ["evaluate-selfplay", "--world", duel, "--agent", out, "--games", "2", "--json"]
    words += ["--opponent", "random", "--opponent", "built-in", "--sampled"]
    (tmp_path / "taken").write_text("")
    for place in (tmp_path, tmp_path / "taken" / "rows.json"):
        assert main([*words, "--out", str(place)]) == 2
        assert "folder" in capsys.readouterr().err
    assert main([*words, "--out", str(tmp_path / "new" / "rows.json")]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "new" / "rows.json").read_text()) == rows
    assert [row["opponent"] for row in rows] == ["random", "built-in"]
    assert all(row["n"] == 2 and -21 <= row["low"] <= row["mean"] for row in rows)
    assert set(rows[0]["sides"]) == {"first_0", "second_0"} and set(rows[1]["sides"]) == {"first_0"}


def test_self_play_needs_players(
    duel: str, tiny_world_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    solo, out = str(tiny_world_path), str(tmp_path / "agent")
    assert main(["train-agent", "--self-play", "--world", solo, "--out", out]) == 2
    assert "no players" in capsys.readouterr().err
    assert main(["train-agent", "--world", duel, "--out", out, "--steps", "1"]) == 2
    assert "self-play" in capsys.readouterr().err
    assert main(["train-agent", "--self-play", "--real", "--world", duel, "--out", out]) == 2
    assert "--self-play" in capsys.readouterr().err
    assert main(["evaluate-selfplay", "--world", solo, "--agent", out]) == 2
    assert "evaluate-agent" in capsys.readouterr().err
