"""All measures in one run on a tiny world and a fake game, and what reaches the card."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from magi_world.cli.measuring import headline
from magi_world.errors import DatasetError
from magi_world.evaluation.card import card_entries, finite, update_card
from magi_world.evaluation.clips import Clips
from magi_world.evaluation.dreaming import DreamSettings
from magi_world.evaluation.prediction import measure_prediction
from magi_world.evaluation.reconstruction import draw_chunks
from magi_world.evaluation.report import Game, Player, evaluate_tables, evaluate_world
from magi_world.evaluation.sizes import Sizes
from magi_world.evaluation.variants import Tables
from magi_world.training.episodes import EpisodeData
from magi_world.world import World, load
from tests.tiny_duel import make_tiny_duel

SMALL = Sizes(
    held_out_episodes=3,
    training_chunks=100,
    reconstruction_chunks=20,
    clips=3,
    prefix=2,
    drawn_clips=2,
    drawn_horizon=2,
    draws=2,
    histories=6,
    inverse_epochs=1,
    strips=2,
    film_seconds=1.0,
    sweep_episodes=2,
)


CLIP_GROUPS = ("real_clips", "real_clips_through_vae", "dreamed_with_real_actions")


def held_out(seed: int) -> bool:
    return seed % 3 == 1


Report = dict[str, Any]


class Still:
    """Never moves."""

    observations = "latent"

    def reset(self, n: int, seed: int | None = None) -> None:
        """Nothing to begin."""

    def act(self, observations: Any, /) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The no-op."""
        return np.zeros(len(observations), np.int64)


@pytest.fixture(scope="module")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("report")
    return folder


@pytest.fixture(scope="module")
def report(tiny_world: World, episodes: list[EpisodeData], report_folder: Path) -> Report:
    plays: Callable[[], list[float]] = lambda: [1.0, 2.0, 4.0]  # noqa: E731

    def players(period: int | None) -> dict[str, Player]:
        assert period == 40  # the one that has just been chosen
        return {"noop": Player(policy=Still(), dream=plays, real=plays)}

    return evaluate_world(
        tiny_world,
        iter(episodes),
        held_out,
        report_folder,
        settings=DreamSettings(batch_size=2, seed=1),
        sizes=SMALL,
        game=Game(
            players=players,
            films=True,
            play_sweep=lambda period, first, n: [float(period)] * n,
        ),
        tables=Tables(kv_ranges=[1, 4]),
    )


def test_every_measure_has_its_n(report: Report) -> None:
    assert report["held_out"]["episodes"] == 3
    assert report["reconstruction"]["n"] == 20
    assert report["prediction"]["n"] == 3
    assert set(report["prediction"]["psnr_at"]) == {"1", "5", "20"}
    assert report["termination"]["n"] == report["held_out"]["chunks"] - 3
    effect = report["prompt_effect"]
    judged = [effect[name] for name in CLIP_GROUPS]
    assert len({row["n"] for row in judged}) == 1
    for row in (effect["real_held_out"], *judged):
        assert 0 < row["n"] == sum(own["n"] for own in row["per_action"].values())
        assert 0 <= row["stuck_share"] < 1
    drawn = effect["drawn_actions"]
    kinds = ("prompts", "paraphrases_seen", "paraphrases_unseen")
    assert len({drawn[kind]["n"] for kind in kinds}) == 1
    for kind in kinds:
        assert drawn[kind]["n"] == pytest.approx(4 * (1 - drawn["no_room_share"]))
        assert len(drawn[kind]["by_chunk"]) == 2
    unseen = drawn["paraphrases_unseen"]["phrases"]
    assert sum(row["n"] for row in unseen.values()) == drawn["paraphrases_unseen"]["n"]
    assert set(unseen) <= {"now stand still", "now strafe left", "now strafe right"}
    assert report["lengths"]["noop"]["real"]["n"] == 3
    assert report["lengths"]["noop"]["ratio"] == 1.0
    assert report["damage"] is None
    assert report["hazard"]["histories"] == 6
    assert report["hazard"]["depths"]["1"]["n"] == 6
    assert [row["kv_range"] for row in report["kv_ranges"]["rows"]] == [1, 4]
    assert report["films"]["noop"]["frames"] == 36


def test_the_dreamed_accuracies_stand_beside_the_real_one(report: Report) -> None:
    effect = report["prompt_effect"]
    real = effect["real_held_out"]["accuracy"]
    dreamed = effect["dreamed_with_real_actions"]
    assert dreamed["of_real"] == pytest.approx(dreamed["accuracy"] / real)
    assert "of_real" not in effect["real_held_out"]


def test_words_without_an_action_are_taken_for_something(report: Report) -> None:
    rows = report["prompt_effect"]["no_action"]
    assert {"look around", "hello", "(no prompt)", "all texts"} <= set(rows)
    for row in rows.values():
        assert sum(row["named"].values()) == pytest.approx(1.0)
        assert 0 <= row["carried_on"] <= 1
    assert rows["all texts"]["n"] == sum(
        row["n"] for text, row in rows.items() if text not in ("all texts", "(no prompt)")
    )


def test_the_sweep_with_the_highest_mean_is_chosen(report: Report) -> None:
    assert report["sweep_period"] == 40
    assert report["sweeps"]["20"] == {"mean": 20.0, "std": 0.0, "n": 2}


def test_the_report_is_written_with_its_pictures(report: Report, report_folder: Path) -> None:
    written = json.loads((report_folder / "report.json").read_text(encoding="utf-8"))
    assert written == report
    assert sorted(path.name for path in report_folder.glob("*.[pm]*")) == [
        "calibration.png",
        "dream_noop.mp4",
        "dream_noop.png",
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
    for key in ("setting", "reconstruction", "prediction", "termination", "hazard"):
        assert again[key] == report[key]
    assert again["prompt_effect"] == report["prompt_effect"]
    assert not {"lengths", "sweeps", "kv_ranges", "films"} & set(again)


def test_the_card_gets_numbers_and_keeps_the_rest(
    report: Report, tiny_world_path: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "world"
    shutil.copytree(tiny_world_path, folder)
    before = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    world = load(folder)
    update_card(world, card_entries(report))
    after = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    for key in set(before) - {"evaluation", "sweep_period", "sweeps", "kv_ranges"}:
        assert after[key] == before[key]
    assert after["kv_ranges"] == report["kv_ranges"] and "kv_ranges" not in after["evaluation"]
    assert after["evaluation"]["hazard"] == report["hazard"]
    assert after["sweep_period"] == world.card["sweep_period"] == 40
    assert after["evaluation"]["termination"]["auc"] == report["termination"]["auc"]
    text = json.dumps(after["evaluation"])
    assert not any(f'"{name}"' in text for name in ("phrases", "confusion", "by_chunk"))
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []


def test_a_report_without_tables_leaves_the_cards(report: Report) -> None:
    own = ("sweep_period", "sweeps", "kv_ranges")
    entries = card_entries({key: value for key, value in report.items() if key not in own})
    assert set(entries) == {"evaluation"}


def test_tables_alone_leave_the_cards_other_numbers(
    tiny_world: World, episodes: list[EpisodeData], tmp_path: Path
) -> None:
    report = evaluate_tables(
        tiny_world,
        iter(episodes),
        held_out,
        tmp_path,
        Tables(kv_ranges=[2]),
        settings=DreamSettings(batch_size=2),
        sizes=SMALL,
    )
    assert report == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert set(report) == {"world", "setting", "held_out", "kv_ranges"}
    assert set(card_entries(report)) == {"kv_ranges"}
    with pytest.raises(DatasetError, match="no held-out episodes"):
        evaluate_tables(tiny_world, episodes, lambda seed: False, tmp_path, Tables(), sizes=SMALL)


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
    clips = Clips(
        frames=frames, actions=np.zeros((1, 8), np.int64), prefix=2, episode=np.zeros(1, np.int64)
    )
    rows = measure_prediction(tiny_world, clips, frames[:, 2:])["psnr_at"]
    assert set(rows) == {"1", "5"}
    for row in rows.values():
        assert row["dream"] == math.inf
        assert row["beats_copy_last"] == 1.0
        assert row["margin_interval"][0] > 0


def test_clips_of_one_episode_are_one_draw(tiny_world: World, episodes: list[EpisodeData]) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(256, size=(6, 3, *episodes[0].frames.shape[1:]), dtype=np.uint8)
    dreamed = rng.integers(256, size=frames[:, 2:].shape, dtype=np.uint8)
    widths = []
    for episode in (np.arange(6), np.zeros(6, np.int64)):
        actions = np.zeros((6, 3), np.int64)
        clips = Clips(frames=frames, actions=actions, prefix=2, episode=episode)
        low, high = measure_prediction(tiny_world, clips, dreamed)["psnr_at"]["1"][
            "margin_interval"
        ]
        widths.append(high - low)
    assert widths[0] > 0 and widths[1] == 0


def test_chunks_are_drawn_once_and_whole(episodes: list[EpisodeData]) -> None:
    chunks = draw_chunks(episodes[:2], 10_000, seed=0)
    whole = sum(int((episode.valid_frames == 4).sum()) for episode in episodes[:2])
    assert len(chunks) == whole
    assert len(draw_chunks(episodes[:2], 7, seed=0)) == 7


def test_single_chunks_have_a_mean_of_their_own(report: Report) -> None:
    coding = report["reconstruction"]
    for name in ("vae", "pca"):
        assert coding[name]["mean_psnr"] >= coding[name]["psnr"]  # the logarithm is concave
    assert 0 < coding["moving_share"] < 1
    assert 0 < coding["moving_chunks"] <= coding["n"]


def test_a_world_with_players_is_measured_by_the_places_of_things_too(tmp_path: Path) -> None:
    world = make_tiny_duel()
    rng = np.random.default_rng(0)
    episodes = []
    for seed in range(9):
        frames = np.full((30, 4, 64, 64, 3), world.card["objects"]["background"], np.uint8)
        for chunk in range(30):  # a ball that wanders down one column
            frames[chunk, :, 2 * chunk : 2 * chunk + 2, 30] = 236
        episodes.append(
            EpisodeData(
                seed=seed,
                behaviour="",
                frames=frames,
                actions=rng.integers(9, size=29),
                rewards=np.zeros((29, 2), np.float32),
                valid_frames=np.full(30, 4),
                health=None,
                terminated=False,
                truncated=True,
            )
        )
    report = evaluate_world(world, episodes, held_out, tmp_path, sizes=SMALL)
    places = report["places"]
    assert set(places["vae"]) == {"ball", "first_0", "second_0"}
    assert set(places["dream"]) == {"1", "5", "20"}
    there = places["vae"]["ball"]
    assert there["n"] + round(there["missed"] * 80) == 80  # 20 chunks, a ball in every frame
    assert report["termination"]["terminal"] == 0 and report["termination"]["auc"] is None
    assert any("ball off its place" in line for line in headline(report))
