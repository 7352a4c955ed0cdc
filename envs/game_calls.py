"""How real games are called, checked alike in all of them: seeds, and actions of running games."""

from collections.abc import Sequence

from magi_world.errors import ActionError, NotReset

MAX_SEED = 2**32 - 1


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
