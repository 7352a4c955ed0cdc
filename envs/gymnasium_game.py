"""A base for adapters: any Gymnasium environment with pictures, played chunk by chunk.

    class MyGame(GymnasiumGame):
        name = "my-game"
        actions = {"wait": 0, "go left": 1, "go right": 2}
        fps = 30

        def make(self):
            return gymnasium.make("MyGame-v0", render_mode="rgb_array")

is a whole adapter; `magi_world.training.collect` plays it.
"""

import math
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from magi_world.config_section import is_number
from magi_world.envs.game_calls import GameChunk, check_action
from magi_world.errors import ConfigError, DatasetError, NotReset
from magi_world.training.pictures import Frames, shrink


class GymnasiumGame:
    """A Gymnasium environment as a game: steps under one action make a chunk of four frames.

    A subclass gives `name` and `actions` and overrides :meth:`make`; the rest has defaults.

    The episode's first picture, repeated, is the reset chunk: no action is played for it. A step
    plays `steps_per_chunk` steps of the environment under one action, and its reward is their sum.
    Where the episode ends within a chunk the rest repeats the last picture, and `valid_frames` says
    how many frames are real. Health is unknown (NaN).

    Attributes:
        name: lower case with hyphens; datasets and worlds are called so.
        actions: the action of the environment behind each prompt, the first one the nearest to
            doing nothing. An environment whose actions are not discrete is played with the few
            that stand here.
        size: height and width of a frame, those of the recipe; pictures are area-averaged to it.
        fps: frames a second at which the game is watched.
        steps_per_chunk: 4, 2 or 1; with fewer than four steps each picture is held for several
            frames, right for games by turns, where four equal moves make no sense.
        max_chunks: where an episode is cut off if the environment does not do it before.
        action_weights: how often a random player takes an action, by prompt, where others are
            taken once; half of the data is played with these weights, half without. None is all
            without.

    Raises:
        ConfigError: an attribute that cannot work, or an action that the environment does not have.
    """

    name: str = ""
    actions: Mapping[str, Any] = {}
    size: tuple[int, int] = (64, 64)
    fps: int = 30
    steps_per_chunk: int = 4
    max_chunks: int = 500
    action_weights: Mapping[str, float] | None = None

    chunk_frames = 4

    def __init__(self) -> None:
        kind = type(self).__name__
        self._check_attributes(kind)
        self.prompts = list(self.actions)
        self.frame_shape = (*self.size, 3)
        self.env: gymnasium.Env[Any, Any] = self.make()
        if not isinstance(self.env, gymnasium.Env):
            raise ConfigError(f"{kind}.make gives {_describe(self.env)}, no Gymnasium environment")
        space = self.env.action_space
        self._actions = [_as_member(space, action) for action in self.actions.values()]
        for prompt, action in zip(self.prompts, self._actions, strict=True):
            if not space.contains(action):
                discrete = isinstance(space, spaces.Discrete)
                raise ConfigError(
                    f"{kind}: the action {action!r} of {prompt!r} is not in {space}"
                    + ("" if discrete else ", which is not discrete: write out one member a prompt")
                )
        self._picture_shape: tuple[int, ...] | None = None
        self._chunks = 0
        self._over = True
        self._closed = False

    def make(self) -> gymnasium.Env[Any, Any]:
        """Make the environment, with `render_mode="rgb_array"` or with pictures as observations."""
        raise NotImplementedError(f"{type(self).__name__}.make gives no environment")

    def picture(self, observation: Any) -> Any:
        """The picture of the game now, uint8 `[H, W, 3]`.

        What the environment renders, or else the observation or its one entry that is a picture.
        """
        if self.env.render_mode == "rgb_array":
            return self.env.render()
        if isinstance(observation, Mapping):
            found = [value for value in observation.values() if _is_picture(value)]
            return found[0] if len(found) == 1 else None
        return observation

    def reset(self, seed: int) -> GameChunk:
        """Start the episode of a seed; the chunk is its first picture, four times."""
        if self._closed:
            raise NotReset("the game is closed: make a new one")
        observation, _ = self.env.reset(seed=seed)
        self._chunks, self._over = 0, False
        frames = np.repeat(self._frame(observation)[None], self.chunk_frames, axis=0)
        return GameChunk(frames, self.chunk_frames, 0.0, False, False, math.nan)

    def step(self, action: int) -> GameChunk:
        """Play one chunk under the action `prompts[action]`.

        Raises:
            ActionError: no index into the prompts.
            NotReset: before the first reset, or after the end of an episode.
        """
        check_action(action, self.prompts, over=self._over)
        frames: list[Frames] = []
        reward, terminated, truncated = 0.0, False, False
        while len(frames) < self.chunk_frames and not (terminated or truncated):
            observation, earned, terminated, truncated, _ = self.env.step(self._actions[action])
            reward += float(earned)
            frames += [self._frame(observation)] * (self.chunk_frames // self.steps_per_chunk)
        valid = len(frames)
        frames += frames[-1:] * (self.chunk_frames - valid)
        self._chunks += 1
        truncated = not terminated and (truncated or self._chunks >= self.max_chunks)
        self._over = terminated or truncated
        return GameChunk(np.stack(frames), valid, reward, terminated, truncated, math.nan)

    def close(self) -> None:
        """Close the environment; calling it again does nothing."""
        if not self._closed:
            self._closed = self._over = True
            self.env.close()

    def _check_attributes(self, kind: str) -> None:
        if not self.name or not self.actions:
            raise ConfigError(f"{kind} needs a name and actions, one for each prompt")
        if not isinstance(self.name, str):
            raise ConfigError(f"{kind}.name {self.name!r} is no text")
        if not isinstance(self.actions, Mapping) or not all(
            isinstance(prompt, str) and prompt for prompt in self.actions
        ):
            raise ConfigError(
                f"{kind}.actions {self.actions!r} is no dictionary from prompts, which are texts, "
                "to actions of the environment"
            )
        if not (
            isinstance(self.size, (tuple, list)) and len(self.size) == 2 and _are_counts(*self.size)
        ):
            raise ConfigError(f"{kind}.size {self.size!r} is not (height, width) in pixels")
        for name in ("fps", "max_chunks"):
            if not _are_counts(value := getattr(self, name)):
                raise ConfigError(f"{kind}.{name} {value!r} is no whole number from 1 on")
        if self.steps_per_chunk not in (1, 2, 4):
            raise ConfigError(f"{kind}.steps_per_chunk {self.steps_per_chunk!r} is not 1, 2 or 4")
        weights = self.action_weights or {}
        if strange := sorted(set(weights) - set(self.actions)):
            raise ConfigError(f"{kind}.action_weights of {strange}, which are no actions")
        shares = [weights.get(prompt, 1.0) for prompt in self.actions]
        if not all(is_number(share) and share >= 0 for share in shares) or not any(shares):
            raise ConfigError(f"{kind}.action_weights {weights!r}: numbers from 0 on, not all 0")

    def _frame(self, observation: Any) -> Frames:
        """The frame of the moment, uint8 `[*size, 3]`.

        Raises:
            DatasetError: there is no picture, or one of another size than before.
        """
        picture = self.picture(observation)
        if not _is_picture(picture):
            raise DatasetError(
                f"{self.name}: no picture uint8 [H, W, 3], but {_describe(picture)}: make the "
                'environment with render_mode="rgb_array", or override picture()'
            )
        if self._picture_shape not in (None, picture.shape):
            raise DatasetError(
                f"{self.name}: frames of different sizes, {self._picture_shape} and then "
                f"{picture.shape}"
            )
        self._picture_shape = picture.shape
        frame = shrink(picture, *self.size)
        # of the right size it comes back as it is, and the environment may draw into it again
        return frame.copy() if frame is picture else frame


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and value >= 1 for value in values)


def _is_picture(value: Any) -> bool:
    return (
        isinstance(value, np.ndarray)
        and value.dtype == np.uint8
        and value.ndim == 3
        and value.shape[-1] == 3
    )


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__


def _as_member(space: spaces.Space[Any], action: Any) -> Any:
    """An action as the space writes it: lists of numbers become arrays."""
    if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)):
        return np.asarray(action, space.dtype)
    return action
