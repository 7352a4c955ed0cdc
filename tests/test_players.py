"""Prompts composed of everybody's action: counted, taken apart and refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magi_world.checkpoints.world_format import check_card
from magi_world.errors import CheckpointError
from magi_world.players import (
    chunk_prompts,
    chunk_wordings,
    compose,
    join_actions,
    players_of,
    split_actions,
)
from tests.tiny_duel import PLAYERS, duel_card
from tests.tiny_world import tiny_card


def test_prompts_of_chunks_are_all_combinations_counted_from_the_first_player() -> None:
    prompts = chunk_prompts(duel_card())
    assert len(prompts) == 9 and len(set(prompts)) == 9
    assert prompts[0] == "left: stay; right: stay"
    assert prompts[5] == "left: down; right: up"  # first_0 is the right one: 1 * 3 + 2


def test_without_players_they_are_the_cards_own() -> None:
    card = tiny_card()
    assert players_of(card) == []
    assert chunk_prompts(card) == card["prompts"]
    assert chunk_wordings(card) == [[p, f"please {p}"] for p in card["prompts"]]


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6))
def test_joined_actions_come_apart_again(pairs: list[tuple[int, int]]) -> None:
    own = [np.array(column) for column in zip(*pairs, strict=True)]
    again = split_actions(join_actions(own, 5), 5, 2)
    assert all(np.array_equal(a, b) for a, b in zip(own, again, strict=True))


def test_indices_and_texts_name_the_same_prompt() -> None:
    card = duel_card()
    for index, prompt in enumerate(chunk_prompts(card)):
        actions = split_actions(index, 3, 2)
        texts = {p: card["prompts"][int(a)] for p, a in zip(PLAYERS, actions, strict=True)}
        assert compose(card, texts) == prompt


def test_wordings_join_every_wording_of_every_player() -> None:
    wordings = chunk_wordings(duel_card())[5]
    assert wordings[0] == "left: down; right: up"
    assert set(wordings) == {
        f"left: {left}; right: {right}" for left in ("down", "go down") for right in ("up", "go up")
    }


@given(st.text(max_size=20), st.text(max_size=20))
def test_any_text_goes_into_the_template_as_it_is(left: str, right: str) -> None:
    composed = compose(duel_card(), {"second_0": left, "first_0": right})
    assert composed == "left: " + left + "; right: " + right


def test_who_says_nothing_does_the_no_op() -> None:
    assert compose(duel_card(), {"first_0": "up"}) == "left: stay; right: up"
    assert compose(duel_card(), {}) == "left: stay; right: stay"


@pytest.mark.parametrize(
    "change",
    [
        {"players": ["first_0"]},
        {"players": ["first_0", "first_0"]},
        {"players": None},
        {"template": "left: {second_0}"},
        {"template": "left: {second_0}; right: {first_0}; {third_0}"},
        {"template": "{second_0!r} {first_0}"},
        {"template": "{second_0} {first_0"},
        {"template": None},
        {"sides": {"first_0": "left"}},
        {"sides": {"first_0": "left", "second_0": "top"}},
        {"terminates": "no"},
    ],
)
def test_cards_that_no_chunk_could_be_composed_by_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        check_card({**duel_card(), **change}, "card")


def test_heads_must_have_one_reward_a_player() -> None:
    card = duel_card()
    card["config"]["outcome"]["rewards"] = ["first_0"]
    with pytest.raises(CheckpointError, match="one a player"):
        check_card(card, "card")
