"""The table made of recorded rows: its lines, what they must not mix, and its plot."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from magi_world.agents.evaluation import Row
from magi_world.agents.results import read_rows, record
from magi_world.agents.results_table import format_lines, make_lines, plot_lines
from magi_world.errors import AgentError, MissingPackage
from tests.agents.result_rows import a_row, blind, dreamed


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
