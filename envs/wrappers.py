"""Wrappers: chunks of frames as single pictures, rewards of one's own, infos without texts.

`LastFrame`, `ChannelStack`, `FrameByFrame` and `CallableReward` take an environment that observes
frames, uint8 `[F, H, W, 3]`; `NumericInfos` takes a vector environment. A reward from the likeness
of pictures and a text is a `CallableReward` with `envs/text_image.py`.
"""

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper

from magi_world.envs.reward import check_reward, rated
from magi_world.envs.spaces import Frames, Observation
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


class FrameByFrame(gymnasium.Wrapper[Frames, Any, Frames, Any], RecordConstructorArgs):
    """Show the frames of each chunk one after the other, uint8 `[H, W, 3]`, the action held.

    A chunk has one action: the step that begins it takes the action, the steps that show its other
    frames ignore theirs (`info["held"]` says so). What a chunk earns, and whether the episode ends
    in it, is told with its last frame; `info` is that of the chunk. `render` with "rgb_array" gives
    the frame that is shown, at the game's own rate.

    Raises:
        ConfigError: the environment observes something else than frames.
    """

    def __init__(self, env: gymnasium.Env[Frames, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        self._count, height, width, channels = _frames_shape(env, type(self).__name__)
        self.observation_space = spaces.Box(0, 255, (height, width, channels), np.uint8)
        if "render_fps" in env.metadata and env.render_mode == "rgb_array":
            rate = round(env.metadata["render_fps"] * self._count)  # whole, as `play` wants it
            self.metadata = {**env.metadata, "render_fps": rate}
        self._waiting: list[Frames] = []
        self._shown: Frames | None = None
        self._outcome: tuple[float, bool, bool, dict[str, Any]] = (0.0, False, False, {})

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frames, dict[str, Any]]:
        """Reset and show the last frame of the opening."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._waiting = []
        self._shown = observation[-1].copy()
        return self._shown.copy(), {**info, "held": False}

    def step(self, action: Any) -> tuple[Frames, float, bool, bool, dict[str, Any]]:
        """Show the next frame; every `F`-th step generates a chunk under its action."""
        held = bool(self._waiting)
        if not held:
            frames, reward, terminated, truncated, info = self.env.step(action)
            self._waiting = list(frames.copy())
            self._outcome = (float(reward), terminated, truncated, info)
        self._shown = self._waiting.pop(0)
        reward, terminated, truncated, info = self._outcome
        if self._waiting:
            reward, terminated, truncated = 0.0, False, False
        return self._shown.copy(), reward, terminated, truncated, {**info, "held": held}

    def render(self) -> Any:
        """The frame that is shown with "rgb_array", else what the environment gives."""
        if self.render_mode == "rgb_array" and self._shown is not None:
            return self._shown.copy()
        return self.env.render()


class NumericInfos(VectorWrapper[Any, Any, Any, Any, Any]):
    """Leave out of a vector environment's infos what is text, such as `prompt`, with its masks.

    TorchRL turns infos into tensors and cannot read the others when episodes restart in the same
    step.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self.autoreset_mode = env.metadata["autoreset_mode"]  # TorchRL asks for the attribute

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset, with numbers only in the infos."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return observations, _numbers(infos)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Step, with numbers only in the infos."""
        *rest, infos = self.env.step(actions)
        return rest[0], rest[1], rest[2], rest[3], _numbers(infos)


def _numbers(infos: dict[str, Any]) -> dict[str, Any]:
    """Infos without texts; `final_obs` holds arrays and stays."""
    texts = {
        key
        for key, column in infos.items()
        if key != "final_obs" and isinstance(column, np.ndarray) and column.dtype == object
    }
    return {
        key: _numbers(column) if isinstance(column, dict) else column
        for key, column in infos.items()
        if key not in texts and key.removeprefix("_") not in texts
    }


class CallableReward(gymnasium.Wrapper[Observation, Any, Observation, Any]):
    """Reward every step by a function of its frames and its prompt.

    The environment observes "frames" or "both" and names the prompt in `info`, as every
    environment of this package does. What it rewards by itself is kept in `info["env_reward"]`. A
    function that can be imported may be given to `magi_world/Video-v0` as `reward="module:name"`
    instead, which also goes into `env.spec`.

    Args:
        env: the environment.
        function: anything that can be called with the frames uint8 `[F, H, W, 3]` and the prompt,
            and returns a number.

    Raises:
        ConfigError: the environment does not observe frames, or `function` cannot be called.
    """

    def __init__(
        self, env: gymnasium.Env[Observation, Any], function: Callable[[Frames, str], Any]
    ) -> None:
        super().__init__(env)
        space = env.observation_space
        if isinstance(space, spaces.Dict) and "frames" in space.spaces:
            space = space["frames"]
        _frames_of_space(space, type(self).__name__)
        self.function = check_reward(function)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Step the environment and replace its reward.

        Raises:
            ConfigError: the function returned no finite number; the step has been made.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        frames: Any = observation["frames"] if isinstance(observation, dict) else observation
        rating = rated(self.function, frames, info["prompt"])
        return observation, rating, terminated, truncated, {**info, "env_reward": reward}


def _frames_shape(env: gymnasium.Env[Frames, Any], wrapper: str) -> tuple[int, int, int, int]:
    return _frames_of_space(env.observation_space, wrapper)


def _frames_of_space(space: spaces.Space[Any], wrapper: str) -> tuple[int, int, int, int]:
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or len(space.shape) != 4:
        raise ConfigError(
            f"{wrapper} needs frames, uint8 [F, H, W, 3], but the environment observes {space}: "
            "make it with observations='frames'"
        )
    frames, height, width, channels = space.shape
    return frames, height, width, channels
