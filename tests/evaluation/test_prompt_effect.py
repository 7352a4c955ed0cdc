"""What is said, what is judged, and what saying nothing does."""

import numpy as np
import pytest
import torch

from magi_world.evaluation.clips import Clips, Episode, cut_clips
from magi_world.evaluation.dreaming import DreamSettings, dream, step_unprompted
from magi_world.evaluation.inverse_model import InverseModel, train
from magi_world.evaluation.mobility import Travel
from magi_world.evaluation.motion import Moments, episode_moments, join_moments
from magi_world.evaluation.prompt_effect import (
    NO_PROMPT,
    add_ratios,
    choose_phrases,
    draw_actions,
    judge,
    measure_drawn_actions,
    measure_no_action,
    measure_real_actions,
)
from magi_world.training.episodes import EpisodeData
from magi_world.world import World

NAMES = ["stand still", "strafe left", "strafe right"]
NOWHERE = Travel(shift=np.zeros((3, 2)))
SETTINGS = DreamSettings(batch_size=4, seed=1)


@pytest.fixture(scope="module")
def moments(episodes: list[EpisodeData]) -> list[Moments]:
    return [part for episode in episodes[:4] for part in episode_moments(episode)]


@pytest.fixture(scope="module")
def model(moments: list[Moments]) -> InverseModel:
    return train(join_moments(moments), 3, epochs=1)


@pytest.fixture(scope="module")
def clips(episodes: list[EpisodeData]) -> Clips:
    held: list[Episode] = list(episodes)
    return cut_clips(held, 4, prefix=3, horizon=3, seed=0)


def test_phrases_of_an_action_come_equally_often() -> None:
    actions = draw_actions(20, 10, 2, hold=4, seed=0)
    assert actions.shape == (20, 10) and (actions[:, :4] == actions[:, :1]).all()
    chosen = choose_phrases(actions, [["a", "b", "c"], ["d"]], seed=0)
    assert len(chosen) == actions.size
    for (clip, chunk), phrase in chosen.items():
        assert phrase in (["a", "b", "c"], ["d"])[actions[clip, chunk]]
    counts = [list(chosen.values()).count(phrase) for phrase in "abc"]
    assert max(counts) - min(counts) <= 1


def test_only_chosen_chunks_are_judged(model: InverseModel, clips: Clips) -> None:
    frames = clips.frames[:, 1:]
    everything = np.ones((4, 3), np.bool_)
    result, right = judge(model, frames, clips.actions, NAMES, everything)
    assert result["n"] == 12 and right.shape == (4, 3)
    assert result["accuracy"] == pytest.approx(right.mean())
    some = everything.copy()
    some[0] = some[:, 2] = False
    result, same = judge(model, frames, clips.actions, NAMES, some)
    assert (same == right).all()
    assert result["n"] == 6 and result["by_chunk"][2] is None
    assert result["accuracy"] == pytest.approx(right[some].mean())


def test_groups_of_real_actions_have_their_size_and_share_their_chunks(
    tiny_world: World, model: InverseModel, clips: Clips, moments: list[Moments]
) -> None:
    dreamed = dream(tiny_world, clips, clips.actions[:, 3:], SETTINGS)
    result = measure_real_actions(
        tiny_world, model, clips, dreamed, moments, NOWHERE, group=9, seed=0
    )
    assert result["real_held_out"]["n"] == result["real_clips"]["n"] == 9
    assert result["real_held_out"]["stuck_share"] == 0
    each = [row["n"] for row in result["real_held_out"]["per_action"].values()]
    assert each == [3, 3, 3]
    ours, theirs = result["real_clips"], result["dreamed_with_real_actions"]
    assert [row["n"] for row in ours["per_action"].values()] == [
        row["n"] for row in theirs["per_action"].values()
    ]


def test_wordings_differ_in_nothing_but_the_words(
    tiny_world: World, model: InverseModel, clips: Clips
) -> None:
    said: list[str] = []
    result = measure_drawn_actions(
        tiny_world, model, clips, SETTINGS, NOWHERE, horizon=2, hold=1, group=100, say=said.append
    )
    assert result["no_room_share"] == 0
    assert result["prompts"]["n"] == 8
    gain = result["unseen_minus_seen"]
    difference = result["paraphrases_unseen"]["accuracy"] - result["paraphrases_seen"]["accuracy"]
    assert gain["points"] == pytest.approx(100 * difference)
    assert gain["interval"][0] <= gain["points"] <= gain["interval"][1]
    assert len(said) == 3


def test_a_wall_takes_chunks_out(tiny_world: World, model: InverseModel, clips: Clips) -> None:
    far = Travel(shift=np.array([[0.0, 0.0], [90.0, 0.0], [-90.0, 0.0]]))  # nobody has been there
    result = measure_drawn_actions(
        tiny_world, model, clips, SETTINGS, far, horizon=2, hold=1, group=100
    )
    counts = result["prompts"]["per_action"]
    assert counts["strafe left"]["n"] == counts["strafe right"]["n"] == 0
    assert result["prompts"]["n"] == counts["stand still"]["n"]
    assert 0 < result["no_room_share"] < 1


def test_words_that_name_nothing(tiny_world: World, model: InverseModel, clips: Clips) -> None:
    result = measure_no_action(
        tiny_world, model, clips, SETTINGS, NOWHERE, horizon=2, texts=("hello", "a door", None)
    )
    assert list(result) == ["hello", "a door", NO_PROMPT, "all texts"]
    assert [row["n"] for row in result.values()] == [8, 8, 8, 16]
    pooled = [result[text]["carried_on"] for text in ("hello", "a door")]
    assert result["all texts"]["carried_on"] == pytest.approx(np.mean(pooled))


def test_saying_nothing_is_the_null_caption(tiny_world: World) -> None:
    rollout = tiny_world.rollout(2, seeds=[0, 1])
    rollout.reset()
    other = rollout.fork([0, 1])
    silent = step_unprompted(rollout)
    assert silent.prompts == (None, None)
    assert rollout.chunk_index.tolist() == [1, 1]
    assert not torch.equal(silent.latents, other.step(["strafe left"] * 2).latents)
    again = tiny_world.rollout(2, seeds=[0, 1])
    again.reset()
    assert torch.equal(step_unprompted(again).latents, silent.latents)
    rollout.step(["strafe left"] * 2)  # and the rollout goes on


def test_ratios_stand_beside_dreamed_groups_only() -> None:
    effect = {
        "real_held_out": {"accuracy": 0.8},
        "dreamed_with_real_actions": {"accuracy": 0.6},
        "drawn_actions": {"chance": 1 / 3, "prompts": {"accuracy": None}},
    }
    add_ratios(effect)
    assert effect["dreamed_with_real_actions"] == {"accuracy": 0.6, "of_real": pytest.approx(0.75)}
    assert effect["drawn_actions"]["prompts"] == {"accuracy": None}  # type: ignore[index]
