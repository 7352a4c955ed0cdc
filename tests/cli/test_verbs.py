"""Every verb once, on the tiny world and a fake game."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from magi_world.agents import Retiring
from magi_world.agents.planner import Planner
from magi_world.cli import bench as bench_verb
from magi_world.cli.evaluate_planner import Timed
from magi_world.cli.games import dataset_folders
from magi_world.cli.measuring import headline
from magi_world.cli.output import cell
from magi_world.cli.settings import parse_settings, stage_settings
from magi_world.errors import ConfigError, DatasetError
from magi_world.evaluation import bench
from magi_world.training.episodes import read_episodes
from magi_world.world import World
from magi_world.worlds import available
from tests.cli.conftest import Run
from tests.evaluation.fake_game import FakeGame


def test_worlds(run: Run) -> None:
    assert [row["name"] for row in run("worlds", "--json").data] == available()
    result = run("worlds")
    assert result.err == f"{len(available())} worlds\n"
    for name in available():
        assert name in result.out


def test_rollout_films_what_was_asked_for(run: Run, tiny_world_path: Path, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    result = run(
        "rollout", tiny_world_path, "--out", tmp_path / "films", "--chunks", 3, "--scale", 2,
        "--prompts", "strafe left", "--prompts", "go right!", "--hold", 2, "--json",
    )  # fmt: skip
    assert result.code == 0
    path = tmp_path / "films" / "rollout.mp4"
    assert result.data["out"] == str(path)
    assert result.data["frames"] == 4 * (1 + 3)
    assert 0 <= result.data["return"] <= 4 * 3
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert (len(frames), frames[0].width, frames[0].height) == (16, 128, 128)


def test_rollout_draws_prompts_and_prints_lines(
    run: Run, tiny_world_path: Path, tmp_path: Path
) -> None:
    pytest.importorskip("av")
    result = run("rollout", tiny_world_path, "--out", tmp_path / "a.mp4", "--chunks", 2)
    assert result.code == 0
    assert f"out            {tmp_path / 'a.mp4'}" in result.out.splitlines()


def test_bench_rollout(run: Run, tiny_world_path: Path) -> None:
    result = run("bench", "rollout", "--world", tiny_world_path, "--chunks", 6, "--json")
    assert result.code == 0
    assert result.data["chunks"] == 6
    assert "CPU cores" in result.err
    printed = run("bench", "rollout", "--world", tiny_world_path, "--chunks", 6).out
    assert "memory_ratio" in printed


def test_bench_env(run: Run, tiny_world_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "matmul_peak", lambda device, dtype: 1e12)  # it takes seconds
    arguments = ("bench", "env", "--world", tiny_world_path, "--chunks", 2, "--num-envs", "1,2")
    rows = run(*arguments, "--json").data
    assert [row["num_envs"] for row in rows] == [1, 2]
    keys = {
        "frames_per_s", "agent_steps_per_s", "p50_ms", "p95_ms", "cold_start_s", "peak_share",
        "mflop_per_chunk", "peak_gflops", "denoising_steps", "dtype", "threads", "env_overhead",
        "env_step_ms",
    }  # fmt: skip
    assert all(0 < row["env_overhead"] < 1 for row in rows)
    assert all(keys <= set(row) for row in rows)
    lines = run(*arguments).out.splitlines()
    assert lines[0].split()[:2] == ["num_envs", "frames_per_s"]
    assert keys <= set(lines[0].split())
    assert len(lines) == 3


def test_bench_env_times_fixed_buffers(
    run: Run, tiny_world_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []

    def compile_nothing(function: Any, **keywords: Any) -> Any:
        compiled.append(function)
        return function

    monkeypatch.setattr(bench, "matmul_peak", lambda device, dtype: 1e12)
    monkeypatch.setattr("torch.compile", compile_nothing)
    arguments = ("bench", "env", "--world", tiny_world_path, "--chunks", 2, "--num-envs", 2)
    (row,) = run(*arguments, "--fixed", "--json").data
    assert row["compile_s"] > 0 and row["compile_gain"] > 0 and len(compiled) == 1
    assert "compile_gain" in run(*arguments, "--fixed").out.splitlines()[0].split()


def test_bench_env_says_what_the_time_goes_into(
    run: Run, tiny_world_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "matmul_peak", lambda device, dtype: 1e12)
    monkeypatch.setattr(bench_verb, "PROFILED", 2)
    arguments = (
        "bench", "env", "--world", tiny_world_path, "--chunks", 1, "--num-envs", "1,2",
        "--profile", "--steps", 1,
    )  # fmt: skip
    result = run(*arguments)
    assert result.code == 0, result.err
    words = result.out.split()
    for name in ("matmul", "attention", "norms", "copies", "rest", "outside_operators"):
        assert name in words
    assert any(word.startswith("aten::") for word in words)
    assert "largest operators, 2 slots" in result.out
    refused = run("bench", "env", "--world", tiny_world_path, "--num-envs", "1,x")
    assert refused.code == 2 and "--num-envs" in refused.err


def test_plan(run: Run, tiny_world_path: Path, fake_game: type[FakeGame]) -> None:
    arguments = (
        "evaluate-planner", "--world", tiny_world_path, "--episodes", 2, "--futures", 2,
        "--horizon", 2, "--rounds", 1, "--steps", 1, "--agent", "noop", "--agent", "random",
        "--temperature", 0.5,
    )  # fmt: skip
    result = run(*arguments, "--json")
    assert result.code == 0, result.err
    assert [(row["agent"], row["where"]) for row in result.data] == [
        (agent, where) for where in ("dream", "real") for agent in ("noop", "random", "planner")
    ]
    for row in result.data[2::3]:
        assert (row["n"], row["futures"], row["plan_horizon"], row["rounds"]) == (2, 2, 2, 1)
        assert row["denoising_steps"] == 1 and row["temperature"] == 0.5
        assert row["seconds_per_action"] > 0
        assert row["policy"] == "planned" and row["best_other"] in ("noop", "random")
        assert row["above_best_low"] <= row["above_best"] <= row["above_best_high"]
    printed = run(*arguments, "--real", "--method", "shooting")
    assert printed.code == 0 and "seconds_per_action" in printed.out
    for words, reason in (
        (("--method", "policy"), "needs a guide"),
        (("--guide", "noop"), "NoOp has no value"),
        (("--temperature", -1), "temperature"),
    ):
        refused = run(*arguments, "--real", *words)
        assert refused.code == 2 and reason in refused.err
    refused = run(*arguments, "--game", "nowhere:Game")
    assert refused.code == 2 and "dream" not in refused.err  # nothing was dreamed in vain


def test_a_timed_planner_is_told_of_ended_episodes(tiny_world: World) -> None:
    """It imagines nothing for them, and they are not counted among its answers."""
    timed = Timed(Planner(tiny_world, method="hold", horizon=1))
    assert isinstance(timed, Retiring)
    timed.reset(3, seed=0)
    latents = torch.zeros(3, *tiny_world.config.latent_shape)
    timed.act(latents)
    timed.retire([1])
    assert len(timed.act(latents)) == 3 and timed.answers == 3 + 2


def test_evaluate_measures_and_writes_the_card(
    run: Run, tiny_world_path: Path, tmp_path: Path, fake_game: type[FakeGame]
) -> None:
    folder, out = tmp_path / "world", tmp_path / "report"
    shutil.copytree(tiny_world_path, folder)
    result = run(
        "evaluate", folder, "--out", out, "--episodes", 2, "--training-chunks", 100,
        "--clips", 2, "--histories", 4, "--real-episodes", 2, "--length-episodes", 3,
        "--batch", 3, "--draws", 2, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.data == json.loads((out / "report.json").read_text())
    assert result.data["held_out"]["episodes"] == 2
    card = json.loads((folder / "world.json").read_text())
    assert card["evaluation"]["prediction"] == result.data["prediction"]
    assert card["sweep_period"] in (20, 24, 28, 32, 36, 40)
    assert {row["n"] for row in card["sweeps"].values()} == {2}
    assert set(card["evaluation"]["lengths"]) == {"noop", "sticky", "sweep"}
    assert card["evaluation"]["lengths"]["noop"]["dream"]["n"] == 3
    lines = headline(result.data)
    assert lines["open loop PSNR after 5 chunks, dB (n=2)"] is not None
    assert lines["return of noop, real (n=3)"] == result.data["lengths"]["noop"]["real"]["mean"]
    assert "[" in lines["return of noop, dream / real (n=3, 3)"]


def test_evaluate_leaves_the_card_alone_when_told(
    run: Run, tiny_world_path: Path, tmp_path: Path, fake_game: type[FakeGame]
) -> None:
    before = (tiny_world_path / "world.json").read_bytes()
    result = run(
        "evaluate", tiny_world_path, "--out", tmp_path, "--episodes", 2, "--clips", 1,
        "--training-chunks", 100, "--histories", 4, "--draws", 2, "--skip-sweeps", "--skip-lengths",
        "--no-update-card",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert (tiny_world_path / "world.json").read_bytes() == before
    assert (
        "termination AUC, mean of 2 dreams (n=" in result.out
        and "\nAUC of the episode's age" in result.out
    )
    assert "change > 16 of 255 within the chunk" in result.out
    for title in ("termination by predicted", "hazard by depth", "percent of pixels"):
        assert f"\n\n{title}" in result.out
    assert "observed_low" in result.out and "bright_ratio" in result.out


def test_evaluate_without_a_real_game_says_so(
    run: Run, tiny_world_path: Path, tmp_path: Path
) -> None:
    result = run("evaluate", tiny_world_path, "--out", tmp_path / "report")
    assert result.code == 2
    assert "no real game 'tiny'" in result.err


@pytest.mark.parametrize("place", ["dream", "real", None])
def test_evaluate_agent_prints_rows(
    place: str | None, run: Run, tiny_world_path: Path, fake_game: type[FakeGame]
) -> None:
    flags = [f"--{place}"] if place else []
    result = run(
        "evaluate-agent", "--world", tiny_world_path, "--episodes", 2, "--agent", "noop",
        "--agent", "sweep", "--seeds", "validation", "--json", *flags,
    )  # fmt: skip
    assert result.code == 0, result.err
    expected = [place] if place else ["dream", "real"]
    rows = result.data
    assert [(row["agent"], row["where"]) for row in rows] == [
        (agent, where) for where in expected for agent in ("noop", "sweep")
    ]
    assert all(row["episodes"] == 2 and row["seeds"] == "validation" for row in rows)


def test_evaluate_agent_prints_a_table(run: Run, tiny_world_path: Path) -> None:
    result = run(
        "evaluate-agent", "--world", tiny_world_path, "--episodes", 2, "--agent", "random",
        "--dream",
    )  # fmt: skip
    assert result.code == 0
    assert "random" in result.out and "mean" in result.out


def test_collect_writes_a_dataset_that_can_be_read(
    run: Run, tmp_path: Path, fake_game: type[FakeGame]
) -> None:
    pytest.importorskip("minari")
    result = run("collect", "tiny", "--out", tmp_path, "--chunks", 60, "--json")
    assert result.code == 0, result.err
    assert result.data["chunks"] >= 60
    assert set(result.data["by_behaviour"]) == {"sticky", "sweep", "still"}
    (folder,) = dataset_folders([tmp_path])
    assert str(folder) == result.data["path"]
    episodes = list(read_episodes(folder))
    assert len(episodes) == result.data["episodes"]
    assert dataset_folders([folder]) == [folder]
    again = run("collect", "tiny", "--out", tmp_path, "--chunks", 60)
    assert again.code == 2 and "exists already" in again.err


def test_collect_lets_an_agent_play_its_share(
    run: Run,
    tmp_path: Path,
    tiny_world_path: Path,
    fake_game: type[FakeGame],
) -> None:
    pytest.importorskip("minari")
    result = run(
        "collect", "tiny", "--out", tmp_path, "--chunks", 120, "--agent", "random",
        "--world", tiny_world_path, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert set(result.data["by_behaviour"]) == {"sticky", "sweep", "still", "agent"}
    blind = run("collect", "tiny", "--out", tmp_path / "b", "--agent", "random")
    assert blind.code == 2 and "'--world': is needed" in blind.err
    assert not (tmp_path / "b").exists()


def test_a_folder_without_datasets_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no Minari dataset"):
        dataset_folders([tmp_path])
    unfinished = tmp_path / ".collecting-x" / "set-v0" / "data"
    unfinished.mkdir(parents=True)
    (unfinished / "metadata.json").write_text("{}")
    with pytest.raises(DatasetError, match="no Minari dataset"):
        dataset_folders([tmp_path])


def test_train_agent_trains_and_saves(run: Run, tiny_world_path: Path, tmp_path: Path) -> None:
    result = run(
        "train-agent", "--world", tiny_world_path, "--out", tmp_path / "agent", "--steps", 16,
        "--set", "num_slots=4", "--set", "num_steps=4", "--set", "minibatches=2", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert result.data["steps"] == 16
    assert (tmp_path / "agent" / "agent.safetensors").is_file()


def test_train_world_hands_everything_over(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_world: World
) -> None:
    from magi_world.training import run as training

    handed: dict[str, Any] = {}

    def train(recipe: Any, data: list[Path], out: Path, **options: Any) -> World:
        handed.update(recipe=recipe, data=data, out=out, **options)
        tiny_world.card["training"] = {"vae_steps": 7}
        return tiny_world

    monkeypatch.setattr(training, "train_world", train)
    folder = tmp_path / "data" / "tiny-v0"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "metadata.json").write_text("{}")
    result = run(
        "train-world", "doom-take-cover", "--data", tmp_path / "data", "--out", tmp_path / "run",
        "--stage", "vae", "--set", "vae.steps=7", "--json",
    )  # fmt: skip
    del tiny_world.card["training"]
    assert result.code == 0, result.err
    assert handed["data"] == [folder]
    assert handed["out"] == tmp_path / "run"
    assert handed["stages"] == ["vae"] and handed["resume"] is False
    assert handed["recipe"].vae.steps == 7
    assert result.data["vae_steps"] == 7


def test_settings_take_the_kind_of_their_default() -> None:
    from magi_world.agents.ppo import Args

    words = [
        "num_slots=8", "gamma=1", "anneal=false", "starts=opening", "channels=[8, 8]",
        "horizon=null",
    ]  # fmt: skip
    assert parse_settings(words, Args) == {
        "num_slots": 8, "gamma": 1.0, "anneal": False, "starts": "opening", "channels": (8, 8),
        "horizon": None,
    }  # fmt: skip
    for word in ("num_slots", "nothing=1", "num_slots=1.5", "num_slots=null", "starts=3"):
        with pytest.raises(ConfigError, match="--set"):
            parse_settings([word], Args)


def test_stage_settings_are_grouped() -> None:
    words = ["vae.steps=3", "dit.learning_rate=1e-4", "vae.seed=2"]
    assert stage_settings(words, ("vae", "dit")) == {
        "vae": {"steps": 3, "seed": 2},
        "dit": {"learning_rate": 1e-4},
    }
    for word in ("steps=3", "vae.steps", "vae.=3", "text.steps=3"):
        with pytest.raises(ConfigError, match="SECTION.NAME=VALUE"):
            stage_settings([word], ("vae", "dit"))


def test_cells() -> None:
    assert [cell(value) for value in (None, 1.23456, 12345.6, 7, "a")] == [
        "-", "1.235", "12346", "7", "a",
    ]  # fmt: skip
