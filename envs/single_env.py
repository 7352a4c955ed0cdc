"""What the dream of one agent and its real twin share: how they are asked for, how they show."""

from collections.abc import Sequence
from typing import Any

import gymnasium

from magi_world.config import WorldConfig
from magi_world.envs.arguments import check_horizon
from magi_world.envs.rendering import RENDER_MODES, Renderer, render_fps
from magi_world.envs.spaces import (
    ACTIONS,
    OBSERVATIONS,
    Action,
    Observation,
    action_space,
    choose,
    max_prompt_length,
    observation_space,
)


class SingleEnv(gymnasium.Env[Observation, Action]):
    """One agent who names a prompt a chunk and is shown that chunk.

    Whoever inherits calls `__init__`, finds out what there is to play, and then calls `_lay_out`.

    Args:
        actions: "text" or "discrete", an index into the prompts.
        observations: "frames", "latent" or "both".
        render_mode: "human", "rgb_array", "rgb_array_list" or None, see `envs/rendering.py`.
        horizon: chunks after the reset chunk at which an episode is truncated, or None.

    Raises:
        ConfigError: a keyword whose value is not allowed.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES)}

    def __init__(
        self, *, actions: str, observations: str, render_mode: str | None, horizon: int | None
    ) -> None:
        self._actions = choose("actions", actions, ACTIONS)
        self._observations = choose("observations", observations, OBSERVATIONS)
        if render_mode is not None:
            choose("render_mode", render_mode, RENDER_MODES)
        self.render_mode = render_mode
        check_horizon(horizon)
        self.horizon = horizon

    def _lay_out(self, prompts: Sequence[str], config: WorldConfig, title: str) -> None:
        """Set up the spaces, the renderer and the state before the first reset."""
        self._max_length = max_prompt_length(config)
        self.action_space = action_space(self._actions, prompts, self._max_length)
        self.observation_space = observation_space(self._observations, config)
        self.metadata = {
            **self.metadata,
            "render_fps": render_fps(self.render_mode, config.fps, config.chunk_frames),
        }
        self._renderer = Renderer(self.render_mode, fps=config.fps, title=title)
        self._chunk = 0  # since the last reset
        self._ended: str | None = "before the first reset()"
