"""Results on disk: rows that tell what they are of, the table made of them, rows played again."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
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
from magi_world.agents.results_table import (
    format_lines,
    format_replayed,
    make_lines,
    plot_lines,
)
from magi_world.errors import AgentError, MissingPackage
from magi_world.world import World
from tests.agents.fork import SMALL
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


def a_row(**changes: Any) -> Row:
    row: Row = {
        "label": "PPO in the dream", "agent": "docs/results/agents/a", "kind": "ppo",
        "policy": "sampled", "where": "real", "seeds": "final", "first_seed": 10_000, "width": 10,
        "world": "tiny", "game": "Toy", "world_hash": None, "vae_hash": "v1",
        "trained_world": "w1",
        "args_hash": "a", "seed": 1, "steps": 1_000, "generations": None, "real_tics": 5_000,
        "validation_tics": 0, "played_tics": 700, "returns": [100.0, 200.0, 400.0],
    }  # fmt: skip
    return row | changes


def blind(label: str, kind: str, **changes: Any) -> Row:
    row = a_row(
        label=label, agent=kind, kind=kind, policy="blind", vae_hash=None, trained_world=None,
        seed=None, steps=None, real_tics=0,
    )  # fmt: skip
    return row | changes


def dreamed(world: str) -> Row:
    """What a row of the dream has that others have not."""
    return {"where": "dream", "world_hash": world, "vae_hash": "v1"}


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


# --- the table ---------------------------------------------------------------------------------


def some_rows() -> list[Row]:
    rng = np.random.default_rng(0)

    def returns(mean: float) -> list[float]:
        drawn: list[float] = rng.normal(mean, 100, 50).tolist()
        return drawn

    rows = [blind("no-op", "noop", returns=returns(150))]
    rows.append(blind("no-op", "noop", **dreamed("w1"), returns=returns(160)))
    rows.append(blind("best sweep", "sweep", args_hash="s", returns=returns(880)))
    for seed, mean in enumerate((900, 1000, 1100, 1200, 1900), start=1):
        rows.append(a_row(seed=seed, real_tics=5_000, returns=returns(mean)))
        rows.append(a_row(seed=seed, **dreamed("w1"), played_tics=0, returns=returns(mean + 300)))
        rows.append(a_row(seed=seed, seeds="validation", first_seed=20_000, played_tics=11))
    rows.append(a_row(label="PPO in the dream, frozen", kind="frozen:ppo", returns=returns(170)))
    return rows


def test_lines_of_the_table() -> None:
    rows = some_rows()
    lines = make_lines(rows)
    assert [line["label"] for line in lines] == [
        "no-op", "best sweep", "PPO in the dream", "PPO in the dream, frozen",
    ]  # fmt: skip
    noop, sweep, ppo, frozen = lines
    assert ppo["seeds"] == 5 and frozen["seeds"] == 1 and noop["seeds"] == 0
    means = [float(np.mean(row["returns"])) for row in rows if row["kind"] == "ppo"
             and row["where"] == "real" and row["seeds"] == "final"]  # fmt: skip
    assert ppo["real"]["episodes"] == 250
    assert ppo["real"]["mean"]["value"] == pytest.approx(np.mean(means))
    assert ppo["real"]["iqm"]["value"] == pytest.approx(np.mean(sorted(means)[1:4]))
    assert ppo["real"]["mean"]["low"] < ppo["real"]["mean"]["value"] < ppo["real"]["mean"]["high"]
    assert ppo["dream"]["mean"]["value"] > ppo["real"]["mean"]["value"]
    assert ppo["by_seed"]["3"]["real"] == pytest.approx(means[2])
    assert (ppo["real_tics"], ppo["validation_tics"], ppo["steps"]) == (5_000, 55, 1_000)
    assert ppo["above_sweep"]["low"] > 0
    assert ppo["above_sweep"]["value"] == pytest.approx(
        np.mean(means) - sweep["real"]["mean"]["value"]
    )
    assert sweep["above_sweep"] is None
    assert noop["above_sweep"]["high"] < 0
    assert noop["dream"]["episodes"] == noop["real"]["episodes"] == 50
    assert frozen["dream"] is None and frozen["validation_tics"] == 0
    share = ppo["dream_over_real"]
    assert share["value"] == pytest.approx(
        ppo["dream"]["mean"]["value"] / ppo["real"]["mean"]["value"]
    )
    assert 1 < share["low"] < share["value"] < share["high"]
    assert frozen["dream_over_real"] is None
    json.dumps(lines, allow_nan=False)


def test_worlds_and_settings_are_not_mixed() -> None:
    lines = make_lines(
        [
            a_row(), a_row(vae_hash="v2", trained_world="w2", returns=[1.0]),
            a_row(args_hash="b", returns=[2.0]), a_row(policy="greedy", returns=[3.0]),
            blind("no-op", "noop"),
            blind("no-op", "noop", **dreamed("w1"), returns=[4.0]),
            blind("no-op", "noop", **dreamed("w2"), returns=[5.0]),
        ]
    )  # fmt: skip
    noops = [line for line in lines if line["label"] == "no-op"]
    assert [line["dream"]["mean"]["value"] for line in noops] == [4.0, 5.0]
    assert all(line["real"]["episodes"] == 3 for line in noops)
    assert len(lines) == 6


def test_scores_in_the_game_stay_those_of_a_world_that_learned_more() -> None:
    """What an agent sees the game through is the VAE: other parts of the world may learn on."""
    old, new = a_row(**dreamed("w1"), returns=[1.0]), a_row(**dreamed("w2"), returns=[2.0])
    lines = make_lines([a_row(), old, new])
    assert [(line["world"], line["vae"]) for line in lines] == [("w1", "v1"), ("w2", "v1")]
    assert [line["dream"]["mean"]["value"] for line in lines] == [1.0, 2.0]
    assert all(line["real"]["episodes"] == 3 for line in lines)
    (line,) = make_lines([a_row(), new])
    assert line["dream"] and line["real"]
    lines = make_lines([a_row(), new, a_row(vae_hash="v2", returns=[5.0])])
    assert [(line["vae"], bool(line["dream"])) for line in lines] == [("v1", True), ("v2", False)]


def test_games_are_not_mixed(tmp_path: Path) -> None:
    """What a blind player does in one game says nothing of another game, nor does its sweep."""
    rows = [
        blind("no-op", "noop", returns=[100.0]),
        blind("no-op", "noop", **dreamed("w1"), returns=[110.0]),
        blind("best sweep", "sweep", args_hash="s", returns=[300.0]),
        a_row(returns=[350.0]),
        blind("no-op", "noop", game="Other", returns=[3.0]),
        blind("no-op", "noop", game="Other", where="dream", world_hash="x", vae_hash="y",
              returns=[4.0]),
        blind("best sweep", "sweep", args_hash="s", game="Other", returns=[5.0]),
        a_row(game="Other", vae_hash="y", returns=[2.0]),
    ]  # fmt: skip
    noops = [line for line in make_lines(rows) if line["label"] == "no-op"]
    means = [(line["dream"]["mean"]["value"], line["real"]["mean"]["value"]) for line in noops]
    assert means == [(110.0, 100.0), (4.0, 3.0)]
    assert [line["above_sweep"]["value"] for line in noops] == [-200.0, -2.0]
    trained = [line for line in make_lines(rows) if line["label"] == "PPO in the dream"]
    assert [line["above_sweep"]["value"] for line in trained] == [50.0, -3.0]
    assert [line["below_best"] for line in trained] == [None, None]
    for row in rows:
        record(tmp_path / "both.json", row)
    assert len(read_rows(tmp_path / "both.json")) == len(rows)


def test_table_for_people() -> None:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(format_lines(make_lines(some_rows())))
    text = captured.get()
    assert "world" not in text  # there is one only
    (line,) = [line for line in text.splitlines() if "PPO in the dream " in line]
    (ppo,) = [line for line in make_lines(some_rows()) if line["label"] == "PPO in the dream"]
    for place in ("dream", "real"):
        number = ppo[place]["mean"]
        assert f"{number['value']:.0f} [{number['low']:.0f}, {number['high']:.0f}]" in line
    assert "250" in line and "5,000" in line and "55" in line


def test_settings_compared_on_validation_seeds() -> None:
    rng = np.random.default_rng(1)
    settings = {"1 step": 900.0, "2 steps": 905.0, "4 steps": 400.0}
    rows = [
        a_row(label=label, args_hash=label, seed=seed, seeds="validation", first_seed=20_000,
              returns=rng.normal(mean, 100, 50).tolist())
        for label, mean in settings.items() for seed in (1, 2)
    ]  # fmt: skip
    sweep = blind("best sweep", "sweep", seeds="validation", returns=[2_000.0])
    lines = make_lines([*rows, sweep, a_row(returns=[5_000.0])], "validation")
    first, *lines = lines
    assert first["label"] == "best sweep" and first["below_best"] is None  # it is no setting
    below = {line["label"]: line["below_best"] for line in lines}
    best = max(lines, key=lambda line: line["real"]["mean"]["value"])["label"]
    assert below.keys() == settings.keys() and below[best] is None and best != "4 steps"
    other = {"1 step": "2 steps", "2 steps": "1 step"}[best]
    assert below[other]["low"] < 0 < below[other]["high"] and below["4 steps"]["high"] < 0
    console = Console(width=220)
    with console.capture() as captured:
        console.print(format_lines(lines, "validation"))
    assert "in reality" in captured.get() and "in the dream" not in captured.get()  # none dreamed
    told = [line for line in captured.get().splitlines() if "not distinguishable" in line]
    assert len(told) == 1 and other in told[0]
    with pytest.raises(AgentError, match="none of the 6 recorded rows is on final seeds"):
        make_lines(rows)


def test_plot_of_real_over_dreamed_return(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = make_lines(some_rows())
    plot_lines(lines, tmp_path / "pictures" / "plot.png")
    with pytest.raises(AgentError, match=r"plot.foo is no picture"):
        plot_lines(lines, tmp_path / "plot.foo")
    assert (tmp_path / "pictures" / "plot.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(AgentError, match="nothing to plot"):
        plot_lines(make_lines([a_row()]), tmp_path / "none.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackage, match=r"magi-world\[eval\]"):
        plot_lines(lines, tmp_path / "none.png")


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
