"""Play a generated world with the keyboard, in Gymnasium's own window: A left, D right.

    python examples/play_window.py

Needs the extra `human`.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
from gymnasium.utils.play import play

import magi_world  # noqa: F401  (registers the environments)
from magi_world.envs import FrameByFrame


def main(
    arguments: Sequence[str] | None = None, *, callback: Callable[..., Any] | None = None
) -> None:
    """Open the window and play until it is closed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="doom-take-cover")
    args = parser.parse_args(arguments)
    env = gym.make(
        "magi_world/DoomTakeCover-v0", world=args.world, actions="discrete", render_mode="rgb_array"
    )
    keys = {"a": 1, "d": 2}
    play(FrameByFrame(env), zoom=8, keys_to_action=keys, noop=0, seed=0, callback=callback)


if __name__ == "__main__":
    main()
