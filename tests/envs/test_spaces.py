import pickle
import subprocess
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from hypothesis import given
from hypothesis import strategies as st

from magi_world.envs.spaces import (
    ACTIONS,
    OBSERVATIONS,
    PromptSpace,
    action_space,
    as_index,
    as_prompt,
    choose,
    observation,
)
from magi_world.errors import ActionError, ConfigError, PromptError

PROMPTS = ["stand still", "strafe left", "strafe right"]
PRINTABLE = st.characters(exclude_categories=("C", "Z"), include_characters=" ")
NOT_PRINTABLE = st.characters(
    categories=("Cc", "Cf", "Cs", "Co", "Zl", "Zp", "Zs"), exclude_characters=" "
)
NOT_TEXT = st.none() | st.integers() | st.floats() | st.binary() | st.lists(st.text())


@given(st.text(PRINTABLE, min_size=1, max_size=256))
def test_any_printable_text_is_a_prompt(text: str) -> None:
    space = PromptSpace(PROMPTS)
    assert text in space
    assert np.str_(text) in space
    assert as_prompt(text) == text


@given(st.text(PRINTABLE, max_size=20), NOT_PRINTABLE, st.text(PRINTABLE, max_size=20))
def test_text_with_an_unprintable_character_is_none(before: str, bad: str, after: str) -> None:
    assert before + bad + after not in PromptSpace(PROMPTS)
    with pytest.raises(PromptError, match="printable"):
        as_prompt(before + bad + after)


@given(NOT_TEXT)
def test_what_is_not_text_is_none(value: object) -> None:
    assert value not in PromptSpace(PROMPTS)
    with pytest.raises(PromptError, match="text is needed"):
        as_prompt(value)


@given(st.integers(1, 40), st.integers(0, 80))
def test_the_length_counts_characters(max_length: int, length: int) -> None:
    fits = 1 <= length <= max_length
    assert ("é" * length in PromptSpace(["a"], max_length)) == fits
    if not fits:
        with pytest.raises(PromptError, match=f"{length} characters, allowed are 1 to"):
            as_prompt("é" * length, max_length)


def test_samples_are_canonical_prompts_from_the_spaces_own_generator() -> None:
    one, two = PromptSpace(PROMPTS, seed=3), PromptSpace(PROMPTS)
    two.seed(3)
    drawn = [one.sample() for _ in range(40)]
    assert drawn == [two.sample() for _ in range(40)]
    assert set(drawn) == set(PROMPTS)
    two.seed(4)
    assert drawn != [two.sample() for _ in range(40)]


def test_samples_follow_mask_and_probability() -> None:
    space = PromptSpace(PROMPTS, seed=0)
    mask = np.array([0, 1, 1], np.int8)
    assert {space.sample(mask) for _ in range(40)} == set(PROMPTS[1:])
    assert space.sample(probability=np.array([0.0, 0.0, 1.0])) == PROMPTS[2]


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"mask": np.ones(3, np.int8), "probability": np.ones(3) / 3}, "one of them"),
        ({"mask": np.zeros(3, np.int8)}, "at least one 1"),
        ({"mask": np.full(3, 2, np.int8)}, "zeros and ones"),
        ({"mask": np.ones(3)}, "int8 array of shape"),
        ({"mask": np.ones(2, np.int8)}, r"shape \(3,\)"),
        ({"mask": (5, None)}, "int8 array"),
        ({"probability": np.array([0.5, 0.6, 0.2])}, "a sum of 1"),
        ({"probability": np.array([1.5, -0.5, 0.0])}, "not negative"),
        ({"probability": np.ones(3, np.float32) / 3}, "float64"),
    ],
)
def test_wrong_masks_are_named(keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PromptSpace(PROMPTS).sample(**keywords)


@pytest.mark.parametrize("copied", [deepcopy, lambda space: pickle.loads(pickle.dumps(space))])
def test_a_copy_is_equal_and_samples_the_same(
    copied: Callable[[PromptSpace], PromptSpace],
) -> None:
    space = PromptSpace(PROMPTS, 40, seed=1)
    space.sample()
    twin = copied(space)
    assert twin == space
    assert "é" * 40 in twin and "é" * 41 not in twin
    assert [twin.sample() for _ in range(20)] == [space.sample() for _ in range(20)]


def test_equality() -> None:
    space = PromptSpace(PROMPTS)
    assert space == PromptSpace(tuple(PROMPTS), seed=5)
    assert space != PromptSpace(PROMPTS[::-1])
    assert space != PromptSpace(PROMPTS, 255)
    text = spaces.Text(256, charset=space.characters)
    assert space != text and text != space
    assert "stand still" in repr(space)


@pytest.mark.parametrize(
    "prompts", [[], "stand still", ["a", "a"], ["a", ""], ["a", "b\n"], ["a", 3], ["x" * 257]]
)
def test_unusable_prompt_lists_are_named(prompts: Any) -> None:
    with pytest.raises(ConfigError, match="prompts"):
        PromptSpace(prompts)


def test_clients_of_text_spaces_get_along() -> None:
    """Batching, JSON and flattening are written for `Text` and reach this space through it."""
    space = PromptSpace(PROMPTS, seed=0)
    batch = batch_space(space, 2)
    batch.seed(0)
    assert set(batch.sample()) <= set(PROMPTS)
    assert space.from_jsonable(space.to_jsonable(["go left!"])) == ["go left!"]
    flat = spaces.flatten(space, "é 語")
    assert flat in spaces.flatten_space(space)
    assert spaces.unflatten(space, flat) == "é 語"
    assert space.character_list[space.character_index("語")] == "語"
    assert space.character_set == set(space.characters)


def test_a_space_needs_no_torch() -> None:
    code = "import magi_world.envs.spaces, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.integers(-5, 8))
def test_an_index_counts_prompts(index: int) -> None:
    forms: list[Any] = [index, np.int64(index), np.int8(index), np.array(index)]
    for form in forms:
        if 0 <= index < len(PROMPTS):
            assert as_index(form, PROMPTS) == index
            assert type(as_index(form, PROMPTS)) is int
        else:
            with pytest.raises(ActionError, match="from 0 to 2"):
                as_index(form, PROMPTS)


@given(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text()
    | st.lists(st.integers(0, 2))
    | st.sampled_from([np.bool_(True), np.array([1]), np.array(True), np.float32(1), np.array(1.0)])
)
def test_what_is_no_integer_is_no_index(value: object) -> None:
    with pytest.raises(ActionError, match="strafe left"):
        as_index(value, PROMPTS)


def test_both_action_forms() -> None:
    assert action_space("text", PROMPTS, 9 + 3) == PromptSpace(PROMPTS, 12)
    assert action_space("discrete", PROMPTS) == spaces.Discrete(3)
    for wrong in ("Text", None, 3, ["text"]):
        with pytest.raises(ConfigError, match="actions .*: allowed are 'text', 'discrete'"):
            action_space(wrong, PROMPTS)  # type: ignore[arg-type]


def test_choose_returns_what_is_allowed() -> None:
    assert [choose("actions", name, ACTIONS) for name in ACTIONS] == list(ACTIONS)


def test_observations_ask_only_for_their_parts() -> None:
    def refuse() -> Any:
        raise AssertionError("not asked for")

    frames = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    latents = np.array([[[[-1e6]], [[0.5]], [[1e6]]]], np.float32)
    seen = observation("frames", lambda: frames, refuse)
    assert isinstance(seen, np.ndarray)
    assert (seen == frames).all() and not np.shares_memory(seen, frames)
    code = observation("latent", refuse, lambda: latents)
    assert isinstance(code, np.ndarray)
    assert code.dtype == np.float32
    assert code.ravel().tolist() == [-100.0, 0.5, 100.0]
    both = observation("both", lambda: frames, lambda: latents)
    assert isinstance(both, dict)
    assert list(both) == ["frames", "latent"]
    assert (both["frames"] == seen).all() and (both["latent"] == code).all()
    assert OBSERVATIONS == ("frames", "latent", "both")
