"""What real games are called with, checked alike in all of them, and what they answer.

Nothing here knows Gymnasium.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from magi_world.errors import ActionError, NotReset

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class GameChunk:
    """What one chunk of a real game gave (see `Game` in `magi_world/training/collect.py`).

    `frames` is uint8 `[F, H, W, 3]`; `valid_frames` (0 to F) counts those of them that the game
    drew, the rest repeat the last one; `reward` is what the chunk earned (Take Cover: the tics
    survived); `health` is the player's after the chunk, NaN where the game knows none.
    """

    frames: npt.NDArray[np.uint8]
    valid_frames: int
    reward: float
    terminated: bool
    truncated: bool
    health: float


def check_seed(seed: int) -> None:
    """Raise `ValueError` unless a game can be seeded with the number."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"a seed of the game is a number from 0 to {MAX_SEED}, got {seed}")


def check_action(action: int, prompts: Sequence[str], *, over: bool) -> None:
    """Check an index into the prompts of a game, and that an episode runs.

    Raises:
        ActionError: there is no such prompt.
        NotReset: the episode is over, or none has begun.
    """
    if not 0 <= action < len(prompts):
        raise ActionError(
            f"action {action!r} is not one of 0 to {len(prompts) - 1} ({list(prompts)})"
        )
    if over:
        raise NotReset("the game has no running episode: call reset first")
