"""MiniGrid's empty room: turn and walk to the green square. A chunk is one move."""

from typing import Any

import gymnasium

from magi_world.envs import GymnasiumGame


class EmptyRoom(GymnasiumGame):
    """A game by turns, seen from above: each picture is held for the four frames of its chunk."""

    name = "minigrid-empty-room"
    actions = {"wait": 6, "turn left": 0, "turn right": 1, "go forward": 2}
    action_weights = {"wait": 0.5, "turn left": 2.0, "turn right": 2.0, "go forward": 4.0}
    size = (48, 48)  # a square of the room is eight pixels: one place of the latents
    fps = 8
    steps_per_chunk = 1

    def make(self) -> gymnasium.Env[Any, Any]:
        """A room of 6x6 squares, in which the player begins anywhere."""
        import minigrid  # noqa: F401  (registers the environments)

        return gymnasium.make(
            "MiniGrid-Empty-Random-6x6-v0", render_mode="rgb_array", highlight=False
        )
