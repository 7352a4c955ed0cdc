"""The inverse model on pictures whose motion gives the action away, and how it is scored."""

import numpy as np
import pytest
import torch

from magi_world.evaluation.inverse_model import predict, score, train
from magi_world.evaluation.motion import Moments, moments_of

NAMES = ["stand still", "strafe left", "strafe right"]
SHIFTS = (0, -1, 1)


def walk(count: int, seed: int) -> Moments:
    """A smooth wall that moves with the action: still, to one side, to the other."""
    rng = np.random.default_rng(seed)
    wall = np.repeat(rng.uniform(0, 255, (8, 32, 3)), 8, axis=1).repeat(4, axis=0)
    kernel = np.ones(8) / 8
    wall = np.apply_along_axis(lambda row: np.convolve(row, kernel, "same"), 1, wall)
    actions = rng.integers(3, size=count)
    place, frames = 0, np.empty((count, 4, 32, 32, 3), np.uint8)
    for chunk, action in enumerate(actions):
        for frame in range(4):
            place += SHIFTS[action]
            frames[chunk, frame] = np.roll(wall, place, axis=1)[:, :32].astype(np.uint8)
    return moments_of(frames, actions)


def test_it_learns_what_moves_the_picture() -> None:
    model = train(walk(800, 0), 3, epochs=4, seed=0)
    held_out = walk(200, 1)  # another wall, another way along it
    result = score(held_out, predict(model, held_out), NAMES)
    assert result["n"] == 198
    assert result["accuracy"] > 0.95
    assert result["by_chunks_held"]["1"]["accuracy"] > 0.95


def test_training_repeats_and_leaves_global_random_state() -> None:
    moments = walk(200, 0)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    said: list[str] = []
    first = train(moments, 3, epochs=1, seed=3, say=said.append)
    assert (torch.get_rng_state() == before).all()
    second = train(moments, 3, epochs=1, seed=3)
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    assert said == [f"inverse model: epoch 1/1, loss {said[0].split()[-1]}"]


def test_score_counts_per_action_and_by_how_long_it_was_held() -> None:
    actions = np.array([0, 0, 1, 1, 2], np.int64)
    moments = Moments(
        motion=np.zeros((5, 2), np.float16),
        actions=actions,
        held=np.array([2, 1, 5, 1, 4], np.int64),
    )
    result = score(moments, np.array([0, 1, 1, 1, 0], np.int64), NAMES)
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["balanced"] == pytest.approx((0.5 + 1 + 0) / 3)
    assert result["by_chunks_held"] == {
        "1": {"accuracy": 0.5, "n": 2},
        "2": {"accuracy": 1.0, "n": 1},
        "3": {"accuracy": None, "n": 0},
        "4+": {"accuracy": 0.5, "n": 2},
    }
    assert result["per_action"]["stand still"] == {"accuracy": 0.5, "n": 2}
    assert result["per_action"]["strafe left"] == {"accuracy": 1.0, "n": 2}
    assert result["confusion"] == [[1, 1, 0], [0, 2, 0], [1, 0, 0]]


def test_an_action_that_never_occurs_has_no_accuracy() -> None:
    moments = Moments(
        motion=np.zeros((1, 2), np.float16),
        actions=np.array([0], np.int64),
        held=np.array([1], np.int64),
    )
    result = score(moments, np.array([0], np.int64), NAMES)
    assert result["per_action"]["strafe left"] == {"accuracy": None, "n": 0}
    assert result["by_chunks_held"]["4+"] == {"accuracy": None, "n": 0}
    assert result["balanced"] == 1.0
