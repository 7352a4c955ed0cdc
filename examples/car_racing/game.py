"""CarRacing: stay on the track, seen from above. A chunk is eight steps of the simulator."""

from dataclasses import replace
from typing import Any

import gymnasium
from gymnasium.wrappers import RepeatAction

from magi_world.envs import GameChunk, GymnasiumGame


class Circuit(GymnasiumGame):
    """Steering, gas and brake are numbers in this game; each prompt is one setting of the three."""

    name = "car-racing"
    actions = {
        "coast": [0.0, 0.0, 0.0],
        "steer left": [-0.6, 0.05, 0.0],
        "steer right": [0.6, 0.05, 0.0],
        "accelerate": [0.0, 0.6, 0.0],
        "brake": [0.0, 0.0, 0.6],
    }
    action_weights = {"steer left": 2.0, "steer right": 2.0, "accelerate": 3.0, "brake": 0.3}
    fps = 25

    def make(self) -> gymnasium.Env[Any, Any]:
        """The simulator, 50 steps a second, of which every second one is a frame."""
        return RepeatAction(gymnasium.make("CarRacing-v3"), num_repeats=2)

    def reset(self, seed: int) -> GameChunk:
        """Begin where the camera has come down: it takes a second, in which the car stands."""
        super().reset(seed)
        for _ in range(6):
            chunk = self.step(0)
        return replace(chunk, reward=0.0)

    def picture(self, observation: Any) -> Any:
        """The observation without the dashboard at its foot."""
        return observation[:84]
