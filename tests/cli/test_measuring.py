"""Tables, films and players of `evaluate`, and what docs/benchmarks.md tells to type."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

from magi_world import agents
from magi_world import world as world_module
from magi_world.agents.random_agent import NoOp
from magi_world.cli.measuring import (
    hazard_rows,
    parse_counts,
    pixel_rows,
    place_rows,
    report_game,
    spot_rows,
)
from magi_world.envs import real_env
from magi_world.world import World
from tests.cli.conftest import Run
from tests.evaluation.fake_game import FakeGame

BENCHMARKS = Path(__file__).parent.parent.parent / "docs" / "benchmarks.md"


def test_counts_are_read() -> None:
    assert parse_counts("1, 4,32", "--kv-ranges") == (1, 4, 32)
    assert parse_counts(None, "--kv-ranges") == ()
    for text in ("", "0", "1,,2", "-1", "1.5", "all"):
        with pytest.raises(typer.BadParameter, match="not numbers from 1"):
            parse_counts(text, "--kv-ranges")


def test_tables_alone_are_printed_and_reach_the_card(
    run: Run, tiny_world_path: Path, tmp_path: Path, fake_game: type[FakeGame]
) -> None:
    folder, out = tmp_path / "world", tmp_path / "report"
    shutil.copytree(tiny_world_path, folder)
    before = json.loads((folder / "world.json").read_text())
    result = run(
        "evaluate", folder, "--out", out, "--episodes", 2, "--clips", 2, "--histories", 2,
        "--kv-ranges", "1,4", "--steps-table", "1", "--tables-only",
    )  # fmt: skip
    assert result.code == 0, result.err
    report = json.loads((out / "report.json").read_text())
    assert "reconstruction" not in report
    card = json.loads((folder / "world.json").read_text())
    assert card["kv_ranges"] == report["kv_ranges"]
    assert card["denoising_steps"] == report["denoising_steps"]
    assert {k: v for k, v in card.items() if k in before} == before
    titles = [line for line in result.out.splitlines() if " " in line and not line[0].isspace()]
    assert titles[0].startswith("KV ranges") and titles[0].endswith("were trained at 4")
    assert any(line.split()[:3] == ["kv_range", "psnr_1", "psnr_5"] for line in titles)
    assert any(line.startswith("denoising steps; hazard over 2 histories") for line in titles)
    assert "agent_steps_per_s" in result.out


def test_the_card_of_a_world_that_ships_is_only_changed_when_asked(
    run: Run, tiny_world_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    fake_game: type[FakeGame],
) -> None:  # fmt: skip
    folder = tmp_path / "shipped"
    shutil.copytree(tiny_world_path, folder)
    before = (folder / "world.json").read_bytes()
    load_world = world_module.load
    monkeypatch.setattr(world_module, "load", lambda name, **options: load_world(folder))
    command = ("evaluate", "tiny", "--out", tmp_path / "out", "--episodes", 2, "--clips", 1,
               "--kv-ranges", "2", "--tables-only")  # fmt: skip
    assert run(*command).code == 0
    assert (folder / "world.json").read_bytes() == before
    assert run(*command, "--update-card").code == 0
    assert "kv_ranges" in json.loads((folder / "world.json").read_text())


def test_wrong_tables_are_refused_before_anything_is_played(
    run: Run, tiny_world_path: Path, tmp_path: Path, fake_game: type[FakeGame]
) -> None:
    common = ("evaluate", tiny_world_path, "--out", tmp_path, "--episodes", 2)
    result = run(*common, "--kv-ranges", "1,x")
    assert result.code == 2 and "--kv-ranges" in result.err
    result = run(*common, "--tables-only")
    assert result.code == 2 and "--kv-ranges or --steps-table" in result.err
    result = run(*common, "--kv-ranges", "1,64", "--tables-only", "--no-update-card")
    assert result.code == 2 and "a clip needs 83 chunks" in result.err


def game_of(world: World, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "lengths": True, "sweeps": True, "films": False, "branches": False, "episodes": 2,
        "batch": 2, "steps": None,
    }  # fmt: skip
    return report_game(world, None, **(options | changes))


def test_players_are_those_that_there_are(
    tiny_world: World, fake_game: type[FakeGame], monkeypatch: pytest.MonkeyPatch
) -> None:
    game = game_of(tiny_world)
    assert game.play_sweep is not None and game.lengths and not game.films
    assert list(game.players(None)) == ["noop", "sticky"]
    assert game.players(20)["sweep"].policy.period == 20

    load = agents.load
    monkeypatch.setattr(agents, "has_agent", lambda world: True)
    monkeypatch.setattr(
        agents, "load", lambda name, **o: NoOp() if name == "tiny" else load(name, **o)
    )
    players = game_of(tiny_world).players(20)
    assert list(players) == ["noop", "sticky", "sweep", "agent"]
    assert len(players["agent"].dream()) == len(players["agent"].real()) == 2


def test_films_alone_need_no_real_game(tiny_world: World) -> None:
    assert "tiny" not in real_env.GAMES
    game = game_of(tiny_world, lengths=False, sweeps=False, films=True)
    assert list(game.players(20)) == ["noop", "sticky"]  # what left and right are nobody knows
    nothing = game_of(tiny_world, lengths=False, sweeps=False)
    assert nothing.players(20) == {}


def test_denoising_steps_reach_the_lengths(tiny_world: World, fake_game: type[FakeGame]) -> None:
    own, one = (
        game_of(tiny_world, sweeps=False, steps=steps).players(None)["noop"].dream()
        for steps in (None, 1)
    )
    assert own.tolist() != one.tolist()


def test_rows_are_flat() -> None:
    sums = {
        "n": 9, "predicted": 1.5, "happened": 3.0, "events": 3, "ratio": 0.5,
        "ratio_interval": [0.4, None],
    }  # fmt: skip
    shares = {"n": 8, "real": 0.1, "vae": 0.09, "dream": 0.05, "ratio": 0.5}
    moving = {**shares, "ratio_interval": [0.4, 0.6]}
    placed = {"vae": 0.9, "ratio": 0.3, "ratio_interval": [0.2, 0.4]}
    few = {"n": 3, "vae": 1.0, "ratio": 0.5, "ratio_interval": [0.1, 0.9]}
    none = {"n": 0, "vae": None, "ratio": None, "ratio_interval": [None, None]}
    depths = {
        "1": {
            "n": 9, "ends": sums, "damage": None, "moving": moving, "bright_in_place": placed,
            "spots": {"1-3": few, "4-8": none},
        },
    }  # fmt: skip
    report = {"hazard": {"depths": depths}}
    (row,) = hazard_rows(report)
    assert (row["depth"], row["ends"], row["ends_predicted"]) == ("1", 3, 1.5)
    assert (row["ends_low"], row["ends_high"]) == (0.4, None) and "hits" not in row
    (pixels,) = pixel_rows(report)
    assert (pixels["n"], pixels["real"], pixels["high"]) == (8, pytest.approx(10.0), 0.6)
    (places,) = place_rows(report)
    assert places == {"depth": "1", "dream": 0.3, "vae": 0.9, "low": 0.2, "high": 0.4}
    (spots,) = spot_rows(report)
    assert (spots["depth"], spots["pixels"], spots["n"]) == ("1", "1-3", 3)
    assert (spots["dream"], spots["vae"], spots["low"], spots["high"]) == (0.5, 1.0, 0.1, 0.9)
    del depths["1"]["spots"]  # as in the reports before it was measured
    assert spot_rows(report) == []
    del depths["1"]["bright_in_place"]  # as in the reports before it was measured
    assert place_rows(report) == []


@pytest.mark.parametrize(
    "line",
    [
        line
        for block in re.findall(r"^```bash\n(.*?)^```", BENCHMARKS.read_text("utf-8"), re.M | re.S)
        for line in block.splitlines()
    ],
)
def test_benchmarks_can_be_typed(line: str, run: Run) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "magi-world"
    verb = words[1:3] if words[1] == "bench" else words[1:2]
    help_text = run(*verb, "--help").out
    assert all(word in help_text for word in words if word.startswith("--"))
