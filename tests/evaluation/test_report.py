"""All measures in one run on a tiny world and a fake game, and what reaches the card."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magi_world.errors import DatasetError
from magi_world.evaluation.clips import Clips
from magi_world.evaluation.dreaming import DreamSettings
from magi_world.evaluation.prediction import measure_prediction
from magi_world.evaluation.prompt_effect import choose_phrases, draw_actions
from magi_world.evaluation.reconstruction import draw_chunks
from magi_world.evaluation.report import (
    Game,
    Sizes,
    card_entries,
    evaluate_world,
    finite,
    update_card,
)
from magi_world.training.episodes import EpisodeData
from magi_world.world import World, load

SMALL = Sizes(
    held_out_episodes=3,
    training_chunks=100,
    reconstruction_chunks=20,
    clips=3,
    prefix=2,
    drawn_clips=2,
    drawn_horizon=2,
    inverse_epochs=1,
    strips=2,
    sweep_episodes=2,
)


def held_out(seed: int) -> bool:
    return seed % 3 == 1


Report = dict[str, Any]


@pytest.fixture(scope="module")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("report")
    return folder


@pytest.fixture(scope="module")
def report(tiny_world: World, episodes: list[EpisodeData], report_folder: Path) -> Report:
    plays: Callable[[], list[float]] = lambda: [1.0, 2.0, 4.0]  # noqa: E731
    return evaluate_world(
        tiny_world,
        iter(episodes),
        held_out,
        report_folder,
        settings=DreamSettings(batch_size=2, seed=1),
        sizes=SMALL,
        game=Game(
            lengths={"noop": (plays, plays)},
            play_sweep=lambda period, first, n: [float(period)] * n,
        ),
    )


def test_every_measure_has_its_n(report: Report) -> None:
    assert report["held_out"]["episodes"] == 3
    assert report["reconstruction"]["n"] == 20
    assert report["prediction"]["n"] == 3
    assert set(report["prediction"]["psnr_at"]) == {"1", "5", "20"}
    assert report["termination"]["n"] == report["held_out"]["chunks"] - 3
    effect = report["prompt_effect"]
    assert effect["real_clips"]["n"] == 3 * 20
    assert effect["dreamed_with_real_actions"]["n"] == 3 * 20
    for kind in ("prompts", "paraphrases_seen", "paraphrases_unseen"):
        assert effect["drawn_actions"][kind]["n"] == 2 * 2
        assert len(effect["drawn_actions"][kind]["by_chunk"]) == 2
    unseen = effect["drawn_actions"]["paraphrases_unseen"]["phrases"]
    assert sum(row["n"] for row in unseen.values()) == 4
    assert set(unseen) <= {"now stand still", "now strafe left", "now strafe right"}
    assert report["lengths"]["noop"]["real"]["n"] == 3
    assert report["damage"] is None


def test_the_sweep_with_the_highest_mean_is_chosen(report: Report) -> None:
    assert report["sweep_period"] == 40
    assert report["sweeps"]["20"] == {"mean": 20.0, "std": 0.0, "n": 2}


def test_the_report_is_written_with_its_strips(report: Report, report_folder: Path) -> None:
    written = json.loads((report_folder / "report.json").read_text(encoding="utf-8"))
    assert written == report
    assert sorted(path.name for path in report_folder.glob("*.png")) == [
        "strip_0.png",
        "strip_1.png",
    ]


def test_the_same_run_gives_the_same_report(
    report: Report, tiny_world: World, episodes: list[EpisodeData], tmp_path: Path
) -> None:
    again = evaluate_world(
        tiny_world,
        iter(episodes),
        held_out,
        tmp_path,
        settings=DreamSettings(batch_size=2, seed=1),
        sizes=SMALL,
    )
    for key in ("setting", "reconstruction", "prediction", "termination", "prompt_effect"):
        assert again[key] == report[key]
    assert "lengths" not in again and "sweeps" not in again


def test_the_card_gets_numbers_and_keeps_the_rest(
    report: Report, tiny_world_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "world"
    shutil.copytree(tiny_world_path, folder)
    before = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    world = load(folder)
    update_card(world, card_entries(report))
    after = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    for key in set(before) - {"evaluation", "sweep_period", "sweeps"}:
        assert after[key] == before[key]
    assert after["sweep_period"] == world.card["sweep_period"] == 40
    assert after["evaluation"]["termination"]["auc"] == report["termination"]["auc"]
    text = json.dumps(after["evaluation"])
    assert not any(f'"{name}"' in text for name in ("phrases", "confusion", "by_chunk"))
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


def test_a_report_without_sweeps_leaves_the_cards(report: Report) -> None:
    entries = card_entries({key: value for key, value in report.items() if "sweep" not in key})
    assert set(entries) == {"evaluation"}


def test_both_kinds_of_episodes_are_needed(
    tiny_world: World, episodes: list[EpisodeData], tmp_path: Path
) -> None:
    with pytest.raises(DatasetError, match="0 held-out episodes"):
        evaluate_world(tiny_world, episodes[:1], lambda seed: False, tmp_path, sizes=SMALL)
    with pytest.raises(DatasetError, match="0 training chunks"):
        evaluate_world(tiny_world, episodes[:1], lambda seed: True, tmp_path, sizes=SMALL)


def test_numbers_that_are_not_finite_become_null() -> None:
    value = {"a": math.nan, "b": [math.inf, 1.0, np.float32(2)], "c": (np.int64(3), "x")}
    assert finite(value) == {"a": None, "b": [None, 1.0, 2.0], "c": [3, "x"]}


def test_a_perfect_prediction_beats_copying(tiny_world: World, episodes: list[EpisodeData]) -> None:
    frames = episodes[0].frames[None, :8]
    clips = Clips(frames=frames, actions=np.zeros((1, 8), np.int64), prefix=2)
    rows = measure_prediction(tiny_world, clips, frames[:, 2:])["psnr_at"]
    assert set(rows) == {"1", "5"}
    for row in rows.values():
        assert row["dream"] == math.inf
        assert row["beats_copy_last"] == 1.0
        assert row["margin_interval"][0] > 0


def test_chunks_are_drawn_once_and_whole(episodes: list[EpisodeData]) -> None:
    chunks = draw_chunks(episodes[:2], 10_000, seed=0)
    whole = sum(int((episode.valid_frames == 4).sum()) for episode in episodes[:2])
    assert len(chunks) == whole
    assert len(draw_chunks(episodes[:2], 7, seed=0)) == 7


def test_phrases_of_an_action_come_equally_often() -> None:
    actions = draw_actions(20, 10, 2, hold=4, seed=0)
    assert actions.shape == (20, 10) and (actions[:, :4] == actions[:, :1]).all()
    chosen = choose_phrases(actions, [["a", "b", "c"], ["d"]], seed=0)
    assert len(chosen) == actions.size
    for (clip, chunk), phrase in chosen.items():
        assert phrase in (["a", "b", "c"], ["d"])[actions[clip, chunk]]
    counts = [list(chosen.values()).count(phrase) for phrase in "abc"]
    assert max(counts) - min(counts) <= 1
