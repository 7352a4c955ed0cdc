"""Held actions in the game and in the dream: what is played, and how a choice is judged."""

from collections.abc import Sequence

import numpy as np
import pytest

from magi_world.cli.measuring import branch_player
from magi_world.evaluation.branches import (
    Branches,
    Outcome,
    branch_out,
    measure_branches,
)
from magi_world.evaluation.dreaming import DreamSettings
from magi_world.training.episodes import EpisodeData
from magi_world.world import World
from tests.evaluation.fake_game import FakeGame


def made(real: list[list[float]], dreamed: list[list[float]], **damage: float) -> Branches:
    lost = np.full((len(real), 3), damage.get("lost", np.nan))
    return Branches(
        episode=np.arange(len(real)),
        real={"reward": np.array(real), "damage": lost},
        dreamed={"reward": np.array(dreamed), "damage": lost},
    )


def test_the_games_branch_begins_where_the_moment_is() -> None:
    play = branch_player(FakeGame)
    # seed 10 dies in chunk 29, in which two tics are survived
    assert play(10, [0] * 20, 1, 5) == Outcome(20.0, 0.0)
    assert play(10, [0] * 20, 1, 30) == Outcome(4.0 * 8 + 2, 0.7)
    assert play(10, [], 1, 12).damage == pytest.approx(0.3)  # the wall costs 30 after ten chunks


def test_a_branch_is_dreamed_like_a_rollout(tiny_world: World, episodes: list[EpisodeData]) -> None:
    asked: list[tuple[int, list[int], int, int]] = []

    def branch(seed: int, before: Sequence[int], action: int, chunks: int) -> Outcome:
        asked.append((seed, list(before), action, chunks))
        return Outcome(float(action), np.nan)

    moments = [(0, 9), (3, 1), (1, 20)]
    settings = DreamSettings(batch_size=6, seed=2)
    branches = branch_out(tiny_world, episodes, moments, branch, settings, depth=2, dreams=2)
    assert [(seed, len(before), action) for seed, before, action, _ in asked] == [
        (episodes[i].seed, chunk - 1, action) for i, chunk in moments for action in range(3)
    ]
    assert asked[0][1] == episodes[0].actions[:8].tolist() and asked[0][3] == 2
    assert branches.real["reward"].tolist() == [[0.0, 1.0, 2.0]] * 3

    prompts = tiny_world.card["prompts"]
    holds = tiny_world.config.sampling.kv_range - 1
    acted = [prompts[action] for action in (0, *episodes[1].actions)]
    expected = []
    for k in range(2):
        rollout = tiny_world.rollout(1, seeds=[0])
        video = episodes[1].frames[20 - holds : 20].reshape(-1, 64, 64, 3)
        rollout.reset(video=video, prompts=acted[20 - holds : 20])
        fork = rollout.fork([0], [2 + 2 * 2 + k])
        first = fork.step([prompts[1]])
        second = fork.step([prompts[1]])
        going = 1 - first.termination_probability
        expected.append(float(first.reward + going * second.reward))
    assert branches.dreamed["reward"][2, 1] == pytest.approx(np.mean(expected), abs=1e-4)


def test_a_choice_is_judged_by_what_it_really_gives() -> None:
    real = [[0.0, 2.0, 4.0], [4.0, 4.0, 4.0], [4.0, 2.0, 0.0]]
    knows = measure_branches(made(real, real))["reward"]
    assert knows["captured"] == 1.0 and knows["deciding"] == 2
    assert (knows["random"], knows["chosen"]) == (pytest.approx(8 / 3), pytest.approx(4.0))
    blind = measure_branches(made(real, [[1.0, 1.0, 1.0]] * 3))["reward"]
    assert blind["captured"] == pytest.approx(0.0)
    wrong = measure_branches(made(real, [[-x for x in row] for row in real]))["reward"]
    assert wrong["captured"] == pytest.approx(-1.0)


def test_less_damage_is_better_and_the_unknown_is_none() -> None:
    unknown = measure_branches(made([[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]]))
    assert unknown["damage"] is None and unknown["n"] == 1
    same = measure_branches(made([[1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0]], lost=0.5))["damage"]
    assert same["captured"] is None and same["deciding"] == 0 and same["best"] == 0.5
    lost = np.array([[0.0, 0.5, 1.0]])
    branches = Branches(
        episode=np.array([0]),
        real={"reward": lost, "damage": lost},
        dreamed={"reward": lost, "damage": lost},
    )
    assert measure_branches(branches)["damage"]["chosen"] == 0.0
