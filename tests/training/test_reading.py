"""Steps of other people's recordings become chunks."""

from typing import Any

import numpy as np
import pytest

from magi_world.errors import ConfigError, DatasetError
from magi_world.training.reading import Reading, group


def grouped(actions: list[int], terminated: bool = False, **reading: Any) -> Any:
    """Chunks of an episode whose picture i is filled with i and whose step i earns i."""
    n = len(actions)
    frames = np.arange(n + 1, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=3)
    return group(
        frames, np.array(actions, np.int64), np.arange(1, n + 1, dtype=np.float32),
        terminated=terminated, reading=Reading(**reading), chunk_frames=4, source="here",
    )  # fmt: skip


def test_one_step_may_be_a_chunk() -> None:
    frames, actions, rewards, valid = grouped([2, 0, 1], steps_per_chunk=1)
    assert frames[..., 0, 0, 0].tolist() == [[i] * 4 for i in range(4)]
    assert actions.tolist() == [2, 0, 1] and rewards.tolist() == [1, 2, 3]
    assert valid.tolist() == [4] * 4


def test_two_steps_are_held_for_two_frames_each() -> None:
    frames, actions, rewards, valid = grouped([1, 1, 2], True, steps_per_chunk=2)
    assert frames[..., 0, 0, 0].tolist() == [[0] * 4, [1, 1, 2, 2], [3] * 4]
    assert actions.tolist() == [1, 2] and rewards.tolist() == [3, 3]
    assert valid.tolist() == [4, 4, 2]


@pytest.mark.parametrize(("rule", "governing"), [("first", [0, 1, 1]), ("majority", [2, 1, 0])])
def test_who_governs_a_mixed_chunk(rule: str, governing: list[int]) -> None:
    steps = [0, 2, 2, 2, 1, 2, 2, 1, 1, 0, 0]  # the last chunk ends after three steps
    _, actions, *_ = grouped(steps, True, mixed_actions=rule)
    assert actions.tolist() == governing


def test_mixed_chunks_are_refused_unless_a_rule_is_chosen() -> None:
    with pytest.raises(DatasetError, match=r'^here, steps 4 to 7: .*\[1, 2, 1, 1\].*"majority"'):
        grouped([0, 0, 0, 0, 1, 2, 1, 1])


def test_less_than_a_chunk_is_refused_unless_it_ends() -> None:
    with pytest.raises(DatasetError, match="^here: shorter than one chunk of 4 steps"):
        grouped([0, 0])
    frames, *_, valid = grouped([0, 0], terminated=True)
    assert len(frames) == 2 and valid.tolist() == [4, 2]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps_per_chunk": 0}, "steps_per_chunk 0"),
        ({"steps_per_chunk": True}, "steps_per_chunk True"),
        ({"mixed_actions": "last"}, "'last' is not one of"),
        ({"resize": "yes"}, "resize 'yes'"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Reading(**values)
    with pytest.raises(ConfigError, match="3 does not divide the 4 frames"):
        Reading(steps_per_chunk=3).check_chunk(4)
