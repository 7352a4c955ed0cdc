"""`evaluate-agent` and `train-agent` beyond their simplest form: rows, table, real game, resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from magi_world.agents.results import read_rows
from magi_world.models.text import TextEncoder
from magi_world.world import load
from tests.cli.conftest import Run
from tests.evaluation.fake_game import FakeGame

SETTINGS = ["--set", "num_slots=4", "--set", "num_steps=4", "--set", "minibatches=2"]


@pytest.fixture
def agent(run: Run, tiny_world_path: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "agent"
    train = ("train-agent", "--world", tiny_world_path, "--out", folder, "--steps", 16, *SETTINGS)
    assert run(*train).code == 0
    return folder


def test_rows_are_recorded_and_the_table_is_printed_of_them(
    run: Run,
    tiny_world_path: Path,
    agent: Path,
    tmp_path: Path,
    fake_game: type[FakeGame],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    base = ("evaluate-agent", "--world", tiny_world_path, "--episodes", 3, "--batch", 2)
    blind = ("--agent", "noop", "--agent", "sweep")
    result = run(*base, *blind, "--record", "docs/results/blind.json", "--json")
    assert result.code == 0, result.err
    assert [row["above_sweep"] for row in result.data if row["agent"] == "noop"]
    mine = ("--agent", "agent", "--agent", "frozen:agent", "--record", "docs/results/ppo.json")
    assert run(*base, *mine).code == 0
    assert run(*base, *mine, "--seeds", "validation", "--real").code == 0
    assert run(*base, *mine[:2], *mine[4:], "--greedy", "--dream", "--label", "careful").code == 0
    rows = read_rows(Path("docs/results/ppo.json"))
    assert len(rows) == 2 * 2 + 2 + 1
    assert {row["agent"] for row in rows} == {"agent", "frozen:agent"}
    assert {row["width"] for row in rows} == {2, 3}

    result = run("evaluate-agent", "--table", "--plot", "plot.png", "--json")
    assert result.code == 0, result.err
    assert [line["label"] for line in result.data] == [
        "no-op", "best sweep", "PPO in the dream", "PPO in the dream, frozen", "careful",
    ]  # fmt: skip
    lines = result.data
    ppo = lines[2]
    assert ppo["validation_tics"] == sum(
        row["played_tics"] for row in rows
        if row["seeds"] == "validation" and row["agent"] == "agent"
    )  # fmt: skip
    assert Path("plot.png").is_file()
    printed = run("evaluate-agent", "--table")
    assert "PPO in the dream, frozen" in printed.out and "above sweep" in printed.out
    assert "that end in it" not in printed.out
    assert "that end in it" in run("evaluate-agent", "--table", "--bands", 2).out
    banded = run("evaluate-agent", "--table", "--bands", 2, "--json").data
    assert banded["table"] == lines and banded["bands"][0]["label"] == "no-op"

    result = run("evaluate-agent", "--table", "--rerun", "--world", tiny_world_path, "--json")
    assert result.code == 0, result.err
    final = [row for row in rows if row["seeds"] == "final"]
    assert len(result.data["replayed"]) == 4 + len(final) < 4 + len(rows)
    assert all(row["same"] == row["episodes"] == 3 for row in result.data["replayed"])
    assert "3 of 3" in run(
        "evaluate-agent", "--table", "--rerun", "--real", "--world", tiny_world_path,
        "--seeds", "validation",
    ).out  # fmt: skip

    printed = run("evaluate-agent", "--table", "--markdown", "--bands", 2)
    table, bands = (part.splitlines() for part in printed.out.split("\n\n"))
    assert len(table) == 2 + len(lines) and len({line.count("|") for line in table}) == 1
    assert table[0].startswith("| agent | policy | in the dream | in reality |")
    assert table[1].startswith("| --- | --- | ---: |") and bands[0].startswith("| agent |")
    shutil.copytree(tiny_world_path, "world")
    assert run("evaluate-agent", "--table", "--world", "world", "--update-card").code == 0
    card = json.loads(Path("world/world.json").read_text())
    assert card["agents"] == lines
    arguments = ("--table", "--seeds", "validation", "--world", "world", "--update-card")
    assert run("evaluate-agent", *arguments).code == 0
    compared = run("evaluate-agent", "--table", "--seeds", "validation", "--json").data
    card = json.loads(Path("world/world.json").read_text())
    assert (card["agents"], card["compared"]) == (lines, {"results": compared})

    # a world that learned on keeps what its agents did in the game, not what they dreamed
    again = load("world")
    assert isinstance(again.text, TextEncoder)
    again.text.final_norm.weight.data += 1
    again.save("taught")
    assert run("evaluate-agent", "--table", "--world", "taught", "--update-card").code == 0
    kept = json.loads(Path("taught/world.json").read_text())["agents"]
    real = [line for line in lines if line["real"]]
    assert [(line["label"], line["real"]["mean"]) for line in kept] == [
        (line["label"], line["real"]["mean"]) for line in real
    ]
    assert all(line["dream"] is None for line in kept)
    printed = run("evaluate-agent", "--table", "--seeds", "validation", "--bands", 2)
    assert "on validation seeds; empty" in printed.out and "final" not in printed.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate-agent", "--rerun"], "'--rerun'"),
        (["evaluate-agent", "--plot", "a.png"], "'--plot'"),
        (["evaluate-agent", "--bands", "0"], "'--bands'"),
        (["evaluate-agent", "--markdown"], "'--markdown'"),
        (["evaluate-agent", "--table", "--markdown", "--json"], "excludes --json"),
        (["evaluate-agent", "--table", "--record", "a.json"], "'--record'"),
        (["evaluate-agent", "--label", "mine"], "'--label'"),
        (["evaluate-agent", "--validation-tics", "5"], "'--validation-tics'"),
        (["evaluate-agent", "--results", "elsewhere"], "'--results'"),
        (["train-agent", "--out", "a", "--clips", "5"], "'--clips'"),
        (["train-agent", "--out", "a", "--soon", "5"], "'--soon'"),
        (["collect", "--out", "a", "--world", "doom-take-cover"], "'--world'"),
        (["evaluate-agent", "--update-card"], "'--update-card'"),
        (["evaluate-agent", "--table"], "no results in docs/results"),
        (["evaluate-agent", "--batch", "0"], "--batch"),
        (["train-agent", "--out", "a", "--kind", "linear", "--real"], "'--real'"),
        (["train-agent", "--out", "a", "--kind", "linear", "--steps", "3"], "'--steps'"),
        (["train-agent", "--out", "a", "--generations", "3"], "'--generations'"),
        (["train-agent", "--out", "a", "--kind", "dqn"], "--kind"),
        (["train-agent", "--out", "a", "--episodes", "3"], "'--episodes'"),
        (["train-agent", "--out", "a", "--self-play", "--record", "b"], "'--record'"),
        (["train-agent", "--out", "a", "--resume"], "no training to go on with in a"),
        (["train-agent", "--out", "a", "--real", "--set", "starts=any"], "starts 'any'"),
    ],
)
def test_a_wrong_argument_ends_with_one_line(
    arguments: list[str], words: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.code == 2 and result.out == ""
    (line,) = result.err.splitlines()
    assert line.startswith("error: ") and words in line


@pytest.mark.parametrize("place", ["taken", "taken/below.json", "folder"])
def test_a_record_that_cannot_be_kept_is_named_before_play(
    place: str, run: Run, tiny_world_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("no rows")
    (tmp_path / "folder").mkdir()
    result = run(
        "evaluate-agent", "--world", tiny_world_path, "--agent", "noop", "--dream",
        "--episodes", 1, "--record", tmp_path / place,
    )  # fmt: skip
    assert result.code == 2 and len(result.err.splitlines()) == 1
    assert "holds no results" in result.err or "cannot be a folder" in result.err


def test_an_agent_goes_on(run: Run, tiny_world_path: Path, agent: Path) -> None:
    kept = (agent / "agent.safetensors").read_bytes()
    anew = run("train-agent", "--world", tiny_world_path, "--out", agent, "--steps", 16, *SETTINGS)
    assert anew.code == 2 and "holds an agent already: --resume" in anew.err
    assert (agent / "agent.safetensors").read_bytes() == kept
    base = ("train-agent", "--world", tiny_world_path, "--out", agent, "--resume", "--json")
    result = run(*base, "--steps", 48)
    assert result.code == 0, result.err
    assert result.data["steps"] == 48 and result.data["updates"] == 3
    described = json.loads((agent / "agent.json").read_text())
    assert described["args"]["num_slots"] == 4  # nobody said so again
    assert run(*base).data["steps"] == 48  # the budget is used up
    refused = run(*base, "--seed", 2)
    assert refused.code == 2 and "seed 1, not 2" in refused.err


def test_a_training_adds_its_rows(
    run: Run, tiny_world_path: Path, tmp_path: Path, fake_game: type[FakeGame]
) -> None:
    base = ("train-agent", "--world", tiny_world_path, *SETTINGS, "--steps", 16)
    rows = tmp_path / "docs" / "mine.json"
    for seed in (1, 2):
        out = ("--out", tmp_path / str(seed), "--seed", seed)
        result = run(*base, *out, "--record", rows, "--episodes", 2, "--json")
        assert result.code == 0, result.err
        assert result.data["steps"] == 16
    found = read_rows(rows)
    assert [(row["seed"], row["where"]) for row in found] == [
        (1, "dream"), (1, "real"), (2, "dream"), (2, "real"),
    ]  # fmt: skip
    assert all(len(row["returns"]) == 2 and row["seeds"] == "final" for row in found)
    assert len({row["args_hash"] for row in found}) == 1
    (tmp_path / "taken").write_text("no rows")
    result = run(*base, "--out", tmp_path / "3", "--record", tmp_path / "taken")
    assert result.code == 2 and "holds no results" in result.err
    assert not (tmp_path / "3").exists()


def test_an_agent_learns_in_the_real_game(
    run: Run, tiny_world_path: Path, tmp_path: Path, fake_game: type[FakeGame]
) -> None:
    base = ("train-agent", "--world", tiny_world_path, "--out", tmp_path, "--real", "--json")
    result = run(*base, "--steps", 16, *SETTINGS, "--set", 'signal_weights={"damage":-1}')
    assert result.code == 0, result.err
    assert result.data["real_tics"] == 4 * (16 + 4)
    described = json.loads((tmp_path / "agent.json").read_text())
    assert described["trained_in"] == "real"
    assert described["args"]["horizon"] is None and described["args"]["starts"] == "opening"
    assert run(*base, "--resume", "--steps", 32).data["steps"] == 32


def test_a_linear_agent_is_trained(run: Run, tiny_world_path: Path, tmp_path: Path) -> None:
    settings: list[Any] = ["--set", "population=4", "--set", "horizon=2", "--set", "episodes=1"]
    base = (
        "train-agent", "--world", tiny_world_path, "--out", tmp_path, "--kind", "linear", "--json",
    )  # fmt: skip
    result = run(*base, "--generations", 2, *settings)
    assert result.code == 0, result.err
    assert result.data["generations"] == 2 and result.data["parameters"] == 1_155
    assert "generation 2" in result.err
    assert run(*base, "--resume", "--generations", 3).data["generations"] == 3
    assert run(
        "evaluate-agent", "--world", tiny_world_path, "--agent", tmp_path, "--dream",
        "--episodes", 1,
    ).code == 0  # fmt: skip
