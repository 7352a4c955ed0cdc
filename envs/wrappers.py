"""Wrappers that turn chunks of frames into single pictures, for libraries that read only those.

Both take an environment with `observations="frames"`, whose observation is uint8 `[F, H, W, 3]`.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from magi_world.envs.spaces import Frames
from magi_world.errors import ConfigError


class LastFrame(gymnasium.ObservationWrapper[Frames, Any, Frames], RecordConstructorArgs):
    """Observe the last frame of each chunk: uint8 `[H, W, 3]`.

    Raises:
        ConfigError: the environment observes something else than frames.
    """

    def __init__(self, env: gymnasium.Env[Frames, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        _, height, width, channels = _frames_shape(env, type(self).__name__)
        self.observation_space = spaces.Box(0, 255, (height, width, channels), np.uint8)

    def observation(self, observation: Frames) -> Frames:
        """Return the last of the frames `[F, H, W, 3]` as an array of its own."""
        # A view would keep the whole chunk alive in a replay buffer.
        last: Frames = observation[-1].copy()
        return last


class ChannelStack(gymnasium.ObservationWrapper[Frames, Any, Frames], RecordConstructorArgs):
    """Observe the frames of each chunk stacked along the channels: uint8 `[H, W, 3F]`.

    Channels 0, 1, 2 are red, green and blue of the oldest frame, the last three of the newest.

    Raises:
        ConfigError: the environment observes something else than frames.
    """

    def __init__(self, env: gymnasium.Env[Frames, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        frames, height, width, channels = _frames_shape(env, type(self).__name__)
        self.observation_space = spaces.Box(0, 255, (height, width, frames * channels), np.uint8)

    def observation(self, observation: Frames) -> Frames:
        """Return the frames `[F, H, W, 3]` as one picture `[H, W, 3F]`, oldest first."""
        return np.concatenate(list(observation), axis=-1)


def _frames_shape(env: gymnasium.Env[Frames, Any], wrapper: str) -> tuple[int, int, int, int]:
    space = env.observation_space
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 4:
        raise ConfigError(
            f"{wrapper} needs frames, uint8 [F, H, W, 3], but the environment observes {space}: "
            "make it with observations='frames'"
        )
    frames, height, width, channels = space.shape
    return frames, height, width, channels
