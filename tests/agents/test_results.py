"""Results on disk: rows that tell what they are of, and rows played again."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from magi_world.agents import load
from magi_world.agents.evaluation import Row, evaluate_agents
from magi_world.agents.files import settings_hash, vae_hash, world_hash
from magi_world.agents.linear_training import Args as LinearArgs
from magi_world.agents.linear_training import train as train_linear
from magi_world.agents.ppo import Args, train
from magi_world.agents.ppo_real import REAL_SETTINGS
from magi_world.agents.results import (
    IDENTITY,
    identity,
    read_results,
    read_rows,
    record,
    replay,
    result_row,
)
from magi_world.agents.results_table import format_replayed
from magi_world.errors import AgentError
from magi_world.world import World
from tests.agents.fork import SMALL
from tests.agents.result_rows import a_row, blind
from tests.evaluation.fake_game import FakeGame

TINY: dict[str, Any] = SMALL | {
    "total_steps": 1, "num_slots": 2, "num_steps": 2, "channels": (4, 4), "hidden": 8,
}  # fmt: skip


def make_game() -> Any:
    return FakeGame()


@pytest.fixture(scope="module")
def dreamer(tiny_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent trained in the dream for two chunks."""
    folder: Path = tmp_path_factory.mktemp("agents") / "dreamer"
    train(tiny_world, Args(**TINY, seed=5), folder, show=False)
    return folder


def played(world: World, name: str, where: str = "dream", **options: Any) -> Row:
    agent = load(name, world=world)
    options = {"episodes": 3, "batch": 2, "games": 2} | options
    (row,) = evaluate_agents(
        world, {name: agent}, where=[where], make_game=make_game, show=False, **options
    )
    return result_row(world, agent, row, width=2)


def test_a_row_tells_what_it_is_of(tiny_world: World, dreamer: Path) -> None:
    tiny_world.card["data"] = {"real_tics": 1_000}
    tiny_world.card["training"] = {"begun_with": {"real_tics": 500}}
    try:
        row = played(tiny_world, str(dreamer))
    finally:
        del tiny_world.card["data"], tiny_world.card["training"]
    described = json.loads((dreamer / "agent.json").read_text())
    assert set(IDENTITY) <= row.keys()
    assert row["label"] == "PPO in the dream"
    assert (row["kind"], row["policy"], row["where"]) == ("ppo", "sampled", "dream")
    assert (row["seed"], row["steps"]) == (5, described["trained"]["steps"])
    assert row["world_hash"] == row["trained_world"] == world_hash(tiny_world)
    assert row["vae_hash"] == vae_hash(tiny_world) != row["world_hash"]
    assert row["real_tics"] == 1_500
    assert row["played_tics"] == 0 and len(row["returns"]) == 3
    assert row["agent"] == str(dreamer)  # it does not lie below the current folder


def test_agents_below_the_folder_are_named_from_there(
    tiny_world: World, dreamer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dreamer.parent)
    assert played(tiny_world, str(dreamer))["agent"] == "dreamer"
    frozen = played(tiny_world, f"frozen:{dreamer}")
    assert frozen["agent"] == "frozen:dreamer"
    assert (frozen["label"], frozen["kind"]) == ("PPO in the dream, frozen", "frozen:ppo")


def test_agents_of_the_real_game_cost_their_own_tics(tiny_world: World, tmp_path: Path) -> None:
    args = Args(**(TINY | REAL_SETTINGS | {"num_slots": 2, "num_steps": 4}))
    train(tiny_world, args, tmp_path, make_game=make_game, show=False)
    row = played(tiny_world, str(tmp_path), "real")
    described = json.loads((tmp_path / "agent.json").read_text())
    assert row["label"] == "PPO in the real game"
    assert row["real_tics"] == described["trained"]["real_tics"] == 4 * 2 * (1 + 4)
    assert row["world_hash"] is None  # of the world it needs its VAE only, to see
    assert row["vae_hash"] == vae_hash(tiny_world)


def test_other_labels(tiny_world: World, tmp_path: Path) -> None:
    args = LinearArgs(generations=1, population=4, episodes=1, horizon=1)
    train_linear(tiny_world, args, tmp_path / "linear", show=False)
    row = played(tiny_world, str(tmp_path / "linear"))
    assert row["label"] == "linear controller, 1 generation" and row["generations"] == 1
    train(tiny_world, Args(**TINY, temperature=1.15), tmp_path / "hot", show=False)
    assert played(tiny_world, str(tmp_path / "hot"))["label"] == "PPO in the dream, τ 1.15"
    described = json.loads((tmp_path / "hot" / "agent.json").read_text()) | {"kind": "fitted-q"}
    (tmp_path / "hot" / "agent.json").write_text(json.dumps(described))
    assert played(tiny_world, str(tmp_path / "hot"))["label"] == "Q learning in the dream, τ 1.15"
    labels = {name: played(tiny_world, name)["label"] for name in ("noop", "random", "sticky")}
    assert labels == {"noop": "no-op", "random": "uniform", "sticky": "sticky"}


def test_blind_agents_in_the_real_game_are_of_no_world(tiny_world: World) -> None:
    row = played(tiny_world, "noop", "real")
    assert row["world_hash"] is None and row["vae_hash"] is None
    assert row["seed"] is None and row["real_tics"] == 0
    assert row["played_tics"] == sum(row["returns"]) + 3 * 4
    assert played(tiny_world, "noop")["world_hash"] == world_hash(tiny_world)


def test_the_sweep_was_chosen_for_tics(tiny_world: World) -> None:
    tiny_world.card["sweeps"] = {"4": {"mean": 100.0, "n": 10}, "8": {"mean": 50.0, "n": 10}}
    try:
        row = played(tiny_world, "sweep", "real")
    finally:
        del tiny_world.card["sweeps"]
    assert row["validation_tics"] == 10 * 104 + 10 * 54


def test_hashes(tiny_world: World) -> None:
    assert settings_hash({"a": 1, "b": 2}) == settings_hash({"b": 2, "a": 1, "seed": 3})
    assert settings_hash({"a": 1}) != settings_hash({"a": 2})
    hashed = world_hash(tiny_world)
    assert hashed is not None and len(hashed) == 16


# --- files -------------------------------------------------------------------------------------


def test_rows_are_added_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "results" / "ppo.json"
    record(path, a_row())
    record(path, a_row(seed=2, returns=[1.0]))
    record(path, a_row(returns=[7.0, 8.0], steps=2_000))  # seed 1 again: no row more
    rows = read_rows(path)
    assert [(row["seed"], row["returns"]) for row in rows] == [(2, [1.0]), (1, [7.0, 8.0])]
    assert len({identity(row) for row in rows}) == 2
    assert len(path.read_text().splitlines()) == 4  # one row a line, between two brackets
    assert list(path.parent.glob("*.partial")) == []
    record(tmp_path / "results" / "blind.json", blind("no-op", "noop"))
    labels = [row["label"] for row in read_results(path.parent)]
    assert labels == ["no-op", "PPO in the dream", "PPO in the dream"]


@pytest.mark.parametrize("text", ["{", "{}", "[1]", '[{"label": "a"}]'])
def test_other_files_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(AgentError, match="a.json holds no results"):
        read_results(tmp_path)
    with pytest.raises(AgentError, match="a.json holds no results"):
        record(tmp_path / "a.json", a_row())
    assert (tmp_path / "a.json").read_text() == text


def test_rows_of_an_earlier_version_say_what_they_lack(tmp_path: Path) -> None:
    row = {key: value for key, value in a_row().items() if key not in ("vae_hash", "game")}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    with pytest.raises(AgentError, match="a row lacks game, vae_hash"):
        read_results(tmp_path)


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="--record"):
        read_results(tmp_path)


# --- played again ------------------------------------------------------------------------------


def test_rows_are_played_again(tiny_world: World, dreamer: Path) -> None:
    rows = [
        played(tiny_world, str(dreamer)),
        played(tiny_world, f"frozen:{dreamer}", "real", seeds="validation"),
        played(tiny_world, "sweep", "real"),
    ]
    found = replay(tiny_world, rows, make_game, show=False)
    assert [row["same"] for row in found] == [3, 3, 3]
    assert all(row["recorded"] == pytest.approx(row["replayed"]) for row in found)
    assert all(row["low"] <= 0 <= row["high"] for row in found)
    console = Console(width=200)
    with console.capture() as captured:
        console.print(format_replayed(found))
    assert captured.get().count("3 of 3") == 3


def test_what_is_not_the_same_is_told(tiny_world: World, dreamer: Path) -> None:
    row = played(tiny_world, str(dreamer))
    other_returns = row | {"returns": [tics + 50 for tics in row["returns"]]}
    other_world = row | {"world_hash": "another"}
    other_eyes = played(tiny_world, str(dreamer), "real") | {"vae_hash": "another"}
    other_agent = row | {"args_hash": "another", "seed": 6}
    absent = row | {"agent": "moved/away"}
    rows = [other_returns, other_world, other_agent, absent, other_eyes]
    found = replay(tiny_world, rows, None, show=False)
    assert found[0]["same"] == 0 and found[0]["high"] < 0
    assert found[1]["note"] == "recorded with another world" and "same" not in found[1]
    assert found[2]["note"] == "the agent is another one: args_hash, seed changed"
    assert found[3]["note"].startswith("cannot be played: no agent 'moved/away'")
    assert found[4]["note"] == "recorded with another world"
    format_replayed(found)
