"""A generated world as a Gymnasium environment: one slot of a rollout, adapted and nothing more."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils import seeding

from magi_world.envs.env_state import SINGLE, check_state, random_state, set_random_state
from magi_world.envs.rendering import RENDER_MODES, Renderer, render_fps
from magi_world.envs.shown import ShownChunks
from magi_world.envs.spaces import (
    ACTIONS,
    OBSERVATIONS,
    Action,
    Frames,
    Observation,
    action_space,
    as_index,
    as_prompt,
    choose,
    max_prompt_length,
    observation_space,
)
from magi_world.errors import ConfigError, ResetOptionError
from magi_world.players import chunk_prompts, players_of
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.rollout import Starts
from magi_world.world import load

STARTS = ("clip", "image", "video", "prompt")
"""Reset options of which at most one may be given."""
RESET_OPTIONS = (*STARTS, "prompts")


class WorldEnv(gymnasium.Env[Observation, Action]):
    """One generated world: a step conditions one chunk of video on a prompt.

    The observation is the chunk: its frames, its latents, or both. `reset` shows the last chunk of
    an opening; that chunk counts in neither the length of the episode nor its return. `info` holds
    `prompt` (the text that conditioned the chunk), `chunk` (chunks since the reset, 0 after it),
    `termination_probability` and the extra signals of the world's card, all as plain values.

    Args:
        world: name of an embedded world, or a folder; text, for `env.spec` to fit into JSON.
        actions: "text", any prompt, or "discrete", an index into the card's prompts.
        observations: "frames", "latent" (nothing is decoded) or "both".
        render_mode: "human", "rgb_array", "rgb_array_list" or None, see `envs/rendering.py`.
        horizon: chunks after the reset chunk at which an episode is truncated; None takes the
            card's, and with a card that names none episodes are never truncated.
        steps: denoising steps per chunk; None takes the world's.
        temperature: scale of the initial noise.
        starts: "opening", or "any" to begin in clips from later in episodes too.
        ignore_termination: never report `terminated`; the horizon still truncates.
        device: where the world runs, such as "cpu" or "cuda"; None as in `magi_world.load`.
        dtype: "float32" or "bfloat16"; None as in `magi_world.load`.

    Raises:
        ConfigError: a keyword whose value is not allowed.
        WorldNotFound: no world of that name or folder.
        MissingPackage: "human" without pygame-ce.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES)}
    for_players = False
    """whether the world may have players; only `envs/multi_env.py` knows what to do with them"""

    def __init__(
        self,
        world: str | os.PathLike[str],
        *,
        actions: str = "text",
        observations: str = "frames",
        render_mode: str | None = None,
        horizon: int | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
        starts: Starts = "opening",
        ignore_termination: bool = False,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        # What is wrong is said before the weights are read.
        self._actions = choose("actions", actions, ACTIONS)
        self._observations = choose("observations", observations, OBSERVATIONS)
        if render_mode is not None:
            choose("render_mode", render_mode, RENDER_MODES)
        self.render_mode = render_mode
        check_horizon(horizon)

        self.world = load(os.fspath(world), device=device, dtype=dtype)
        self.rollout = self.world.rollout(1, steps=steps, temperature=temperature, starts=starts)
        card, config = self.world.card, self.world.config
        check_agents(card, self.for_players)
        self.horizon: int | None = card.get("horizon") if horizon is None else horizon
        self.ignore_termination = ignore_termination
        self._prompts = chunk_prompts(card)
        self._max_length = max_prompt_length(config)
        self.action_space = action_space(actions, self._prompts, self._max_length)
        self.observation_space = observation_space(observations, config)
        self.metadata = {
            **self.metadata,
            "render_fps": render_fps(render_mode, config.fps, config.chunk_frames),
        }
        self._renderer = Renderer(render_mode, fps=config.fps, title=self.world.name)
        nothing = torch.zeros(1, *config.latent_shape, device=self.world.device)
        self._shown = ShownChunks(nothing, self._observations, "numpy")
        self._chunk = 0  # since the last reset
        self._seeded = False
        self._ended: str | None = "before the first reset()"

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode and return its first observation.

        Args:
            seed: 0 to 2^63 - 1, seeds the slot's generator; without it the generator goes on where
                it was, and the first reset of all draws a seed from `np_random`.
            options: at most one of `clip` (index into the world's bank), `image` (uint8
                `[H, W, 3]`), `video` (uint8 `[T, H, W, 3]`), `prompt` (chunk 0 is generated with
                no history); beside `image` or `video` also `prompts`, one a chunk, None where a
                chunk had none. Without any an opening is drawn from the bank.

        Raises:
            ResetOptionError: an unknown option, two that exclude each other, or a wrong value.
            PromptError: a prompt among the options that cannot be used.
            ConfigError: a seed that is too large.

        A reset that raises leaves the running episode as it was.
        """
        start = check_reset_options(options)
        if seed is not None:  # a bad seed is refused before anything has changed
            seeding.np_random(seed)
            if seed >= 2**63:
                raise ConfigError(f"seed {seed}: allowed are 0 to 2**63 - 1")
        slot_seed = seed
        if seed is None and not self._seeded:
            slot_seed = int(self.np_random.integers(2**31))
        chunk = self.rollout.reset(seeds=None if slot_seed is None else [slot_seed], **start)
        super().reset(seed=seed)
        self._seeded = True
        self._chunk = 0
        self._ended = None
        self._renderer.add(_frames_of(chunk), first=True)
        return self._observe(chunk), self._info(chunk)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Generate one chunk under `action` and return what Gymnasium expects of a step.

        The reward is the world's for this chunk. `terminated` comes from the world, `truncated`
        from the horizon; the two never merge.

        Raises:
            ResetNeeded: before the first reset or after the end of an episode.
            PromptError: with text actions, what the action space does not contain, or more UTF-8
                bytes than the text encoder of an embedded world takes.
            ActionError: with discrete actions, no integer in range.

        A step that raises leaves everything as it was, generators included.
        """
        if self._ended is not None:
            raise ResetNeeded(f"step() {self._ended}: call reset()")
        if self._actions == "text":
            prompt = as_prompt(action, self._max_length)
        else:
            prompt = self._prompts[as_index(action, self._prompts)]
        chunk = self.rollout.step([prompt])
        self._chunk += 1
        terminated = bool(chunk.terminated[0]) and not self.ignore_termination
        truncated = self.horizon is not None and self._chunk >= self.horizon
        if terminated or truncated:
            self._ended = f"after the end of the episode, {self._chunk} chunks long"
        self._renderer.add(_frames_of(chunk))
        reward = self._reward(chunk)
        return self._observe(chunk), reward, terminated, truncated, self._info(chunk)

    def get_state(self) -> dict[str, Any]:
        """Everything that decides the future, copied: a dictionary of tensors and plain values.

        It holds cache, time and generators of the rollout, the counters of the environment, its
        `np_random` and the last chunk. `magi_world.save_state` writes it to a file. Spaces keep
        their own generators.
        """
        return {
            "env": SINGLE,
            "rollout": self.rollout.state_dict(),
            "shown": self._shown.state(),
            "chunk": self._chunk,
            "seeded": self._seeded,
            "ended": self._ended,
            "np_random": random_state(self),
        }

    def set_state(self, state: Mapping[str, Any]) -> Observation | None:
        """Go on from a saved state; returns the observation that belongs to it.

        The future is exact on the machine that saved it; elsewhere it is close. Before the first
        reset there is no observation, and None is returned.

        Raises:
            CheckpointError: no state of a single environment, or one that does not fit its rollout
                (another world, other weights, dtype or geometry); nothing has changed.
        """
        check_state(state, SINGLE, ("shown", "chunk", "seeded", "ended"))
        self.rollout.load_state_dict(state["rollout"])
        set_random_state(self, state["np_random"])
        self._chunk = int(state["chunk"])
        self._seeded = bool(state["seeded"])
        self._ended = state["ended"]
        if not self.rollout.ready[0]:
            return None
        frames = self._shown.restore(state["shown"], self.world.decode)
        self._renderer.add(lambda: frames()[0].cpu().numpy(), first=True)
        observed: Observation = self._shown.observation(0)
        return observed

    def render(self) -> Any:
        """Return the last frame, all frames since the last call, or None, as `render_mode` says."""
        return self._renderer.render()

    def close(self) -> None:
        """Close the window if there is one; calling it again does nothing."""
        self._renderer.close()

    def _reward(self, chunk: Chunk) -> float:
        return float(chunk.reward[0])

    def _observe(self, chunk: Chunk) -> Observation:
        self._shown.replace(chunk.latents, lambda: chunk.frames)
        observed: Observation = self._shown.observation(0)
        return observed

    def _info(self, chunk: Chunk) -> dict[str, Any]:
        signals = {name: float(values[0]) for name, values in chunk.signals.items()}
        return {
            "prompt": chunk.prompts[0] or "",  # a reset from pictures may have had none
            "chunk": self._chunk,
            "termination_probability": float(chunk.termination_probability[0]),
            **signals,
        }


def check_horizon(horizon: Any) -> None:
    """Refuse a `horizon` that is neither None nor a whole number of chunks from 1 on.

    Raises:
        ConfigError: it is such a value.
    """
    if horizon is not None and (not _is_integer(horizon) or horizon < 1):
        raise ConfigError(f"horizon {horizon!r}: a whole number of chunks, 1 or more, or None")


def check_agents(card: Mapping[str, Any], for_players: bool) -> None:
    """Refuse a world with players where a single agent is expected.

    Raises:
        ConfigError: it is one.
    """
    if players_of(card) and not for_players:
        raise ConfigError(
            f"the world {card['name']!r} has the players {players_of(card)}: open it with "
            f"magi_world.envs.parallel_env({card['name']!r})"
        )


def check_reset_options(options: object) -> dict[str, Any]:
    """Return the reset options as keywords of `Rollout.reset`.

    Raises:
        ResetOptionError: no dictionary, an unknown key, a value of None, two options of `STARTS`,
            or `prompts` without the pictures that they describe.
    """
    if options is None:
        return {}
    if not isinstance(options, Mapping):
        raise ResetOptionError(
            f"options {options!r}: a dictionary is needed, with keys of {list(RESET_OPTIONS)}"
        )
    unknown = [key for key in options if key not in RESET_OPTIONS]
    if unknown:
        raise ResetOptionError(f"unknown reset options {unknown}: known are {list(RESET_OPTIONS)}")
    empty = [key for key, value in options.items() if value is None]
    if empty:
        raise ResetOptionError(f"reset options {empty} are None: leave out what is not meant")
    given = [key for key in STARTS if key in options]
    if len(given) > 1:
        raise ResetOptionError(f"reset options {given}: at most one of {list(STARTS)}")
    start = dict(options)
    if "clip" in start:
        if not _is_integer(start["clip"]):
            raise ResetOptionError(f"clip {start['clip']!r}: an index into the bank is needed")
        start["clip"] = int(start["clip"])
    if "prompts" in start:
        if given not in (["image"], ["video"]):
            raise ResetOptionError(
                f"reset options {list(options)}: 'prompts' goes beside 'image' or 'video'"
            )
        if isinstance(start["prompts"], str) or not isinstance(start["prompts"], Sequence):
            raise ResetOptionError(f"prompts {start['prompts']!r}: a list, one a chunk, is needed")
    return start


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _frames_of(chunk: Chunk) -> Callable[[], Frames]:
    """Give the frames uint8 `[F, H, W, 3]` of the only slot, decoded when first asked for."""
    return lambda: chunk.frames[0].cpu().numpy()
