"""Episodes of the fake game."""

import numpy as np
import pytest

from magi_world.training.collect import Behaviour, play_episode
from magi_world.training.episodes import EpisodeData
from tests.evaluation.fake_game import FakeGame


class Drawn:
    """Plays uniform actions of a generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def reset(self, n: int, seed: int | None = None) -> None:
        """Nothing to begin."""

    def act(self, observations: object, /) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """One action for one row."""
        return self.rng.integers(3, size=1)


@pytest.fixture(scope="session")
def episodes() -> list[EpisodeData]:
    """Ten episodes with the seeds 10 to 19; the last one is held out, as `is_held_out` says."""
    behaviour = Behaviour("drawn", 1.0, Drawn)
    return [play_episode(FakeGame(), behaviour, seed) for seed in range(10, 20)]
