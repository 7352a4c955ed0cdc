"""Films of long dreams."""

from pathlib import Path

import numpy as np
import pytest
import torch

from magi_world.evaluation.dreaming import DreamSettings
from magi_world.evaluation.films import SCALE, film_behaviours
from magi_world.world import World


class Steady:
    """Plays one action for ever and remembers what it was shown."""

    def __init__(self, action: int, observations: str) -> None:
        self.action = action
        self.observations = observations
        self.seen: list[tuple[int, ...]] = []

    def reset(self, n: int, seed: int | None = None) -> None:
        """Begin."""
        assert (n, seed) == (1, 3)

    def act(self, observations: torch.Tensor, /) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """The same action again."""
        self.seen.append(tuple(observations.shape))
        return np.full(len(observations), self.action)


def test_every_policy_is_filmed(tiny_world: World, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    left, right = Steady(1, "latent"), Steady(2, "frames")
    result = film_behaviours(
        tiny_world, {"left": left, "right": right}, tmp_path, DreamSettings(seed=3), seconds=1
    )
    assert set(result) == {"left", "right"}
    for name, row in result.items():
        assert (row["chunks"], row["frames"]) == (9, 36)  # the whole chunks that last a second
        assert row["strip"] == f"dream_{name}.png"
        assert (tmp_path / row["strip"]).read_bytes().startswith(b"\x89PNG")
        with av.open(str(tmp_path / row["video"])) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 36 and frames[0].shape == (64 * SCALE, 64 * SCALE, 3)
        assert all(1 <= chunk <= 9 for chunk in row["ended_at"])
    assert left.seen == [(1, *tiny_world.config.latent_shape)] * 9
    assert right.seen == [(1, 4, 64, 64, 3)] * 9


def test_a_film_is_the_rollout_of_its_seed(tiny_world: World, tmp_path: Path) -> None:
    pytest.importorskip("av")
    twice = [
        film_behaviours(
            tiny_world, {"still": Steady(0, "latent")}, tmp_path, DreamSettings(seed=3), seconds=0.5
        )
        for _ in range(2)
    ]
    assert twice[0] == twice[1]
