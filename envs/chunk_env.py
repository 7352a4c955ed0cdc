"""One slot of a rollout as a Gymnasium environment: what generated worlds and video models share.

`envs/world_env.py` and `envs/video_env.py` say what is loaded, how episodes begin and what is
rewarded.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from gymnasium.error import ResetNeeded

from magi_world.envs.arguments import check_reset_options, checked_seed
from magi_world.envs.env_state import (
    SINGLE,
    check_state,
    random_state,
    set_random_state,
    unless_refused,
)
from magi_world.envs.shown import ShownChunks, picture_of
from magi_world.envs.single_env import SingleEnv
from magi_world.envs.spaces import (
    Action,
    Observation,
    as_index,
    as_prompt,
)
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.rollout import Rollout
from magi_world.world import World


class ChunkEnv(SingleEnv):
    """A step conditions one chunk of video on a prompt; the observation is that chunk.

    `reset` shows the last chunk of what an episode begins with; that chunk counts in neither the
    length of the episode nor its return. `info` holds `prompt` (the text that conditioned the
    chunk), `chunk` (chunks since the reset, 0 after it), `termination_probability` and the signals
    of the world's card, all as plain values.

    Whoever inherits calls `__init__`, loads what there is to load, and then calls `_open`.

    Args:
        actions: "text", any prompt, or "discrete", an index into the prompts.
        observations: "frames", "latent" (nothing is decoded) or "both".
        render_mode: "human", "rgb_array", "rgb_array_list" or None, see `envs/rendering.py`.
        horizon: chunks after the reset chunk at which an episode is truncated, or None.

    Raises:
        ConfigError: a keyword whose value is not allowed.
    """

    ignore_termination = False
    world: World
    rollout: Rollout
    prompts: list[str]
    """what the action space samples and "discrete" indexes"""

    def _open(self, rollout: Rollout, prompts: Sequence[str]) -> None:
        """Set up the spaces and the state of an environment over this rollout of one slot."""
        self.rollout, self.world, self.prompts = rollout, rollout.world, list(prompts)
        config = self.world.config
        self._lay_out(self.prompts, config, self.world.name)
        shape, place = config.latent_shape, self.world.device
        nothing = torch.zeros(1, *shape, dtype=torch.float32, device=place)
        self._shown = ShownChunks(nothing, self._observations, "numpy", config.frames_shape)
        self._seeded = False

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

        A reset that is refused leaves the running episode as it was.
        """
        start = self._start_of(options)
        if seed is not None:  # a bad seed is refused before anything has changed
            seed = checked_seed(seed)
        slot_seed = seed
        with unless_refused(self):
            if seed is None and not self._seeded:
                slot_seed = int(self.np_random.integers(2**31))
            chunk = self.rollout.reset(seeds=None if slot_seed is None else [slot_seed], **start)
        super().reset(seed=seed)
        self._seeded = True
        self._chunk = 0
        self._ended = None
        self._renderer.add(partial(picture_of, chunk), first=True)
        return self._observe(chunk), self._info(chunk)

    def _start_of(self, options: dict[str, Any] | None) -> dict[str, Any]:
        """What an episode begins with, as keywords of `Rollout.reset`; checks the options."""
        return check_reset_options(options)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Generate one chunk under `action` and return what Gymnasium expects of a step.

        The reward is the world's for this chunk. `terminated` comes from the world, `truncated`
        from the horizon; the two never merge.

        Raises:
            ResetNeeded: before the first reset or after the end of an episode.
            PromptError: with text actions, what the action space does not contain, or more UTF-8
                bytes than the text encoder of an embedded world takes.
            ActionError: with discrete actions, no integer in range.

        A step that is refused leaves everything as it was, generators included. An error of another
        kind, such as one of a reward function, may come when the chunk has been generated: then the
        episode has gone on by it.
        """
        if self._ended is not None:
            raise ResetNeeded(f"step() {self._ended}: call reset()")
        if self._actions == "text":
            prompt = as_prompt(action, self._max_length)
        else:
            prompt = self.prompts[as_index(action, self.prompts)]
        chunk = self.rollout.step([prompt])
        self._chunk += 1
        terminated = bool(chunk.terminated[0]) and not self.ignore_termination
        truncated = self.horizon is not None and self._chunk >= self.horizon
        if terminated or truncated:
            self._ended = f"after the end of the episode, {self._chunk} chunks long"
        self._renderer.add(partial(picture_of, chunk))
        observed = self._observe(chunk)  # so that it is kept even if a reward cannot be given
        return observed, self._reward(chunk), terminated, truncated, self._info(chunk)

    @property
    def chunk(self) -> int:
        """Chunks since the last reset."""
        return self._chunk

    @property
    def over(self) -> bool:
        """Whether `step` waits for a reset."""
        return self._ended is not None

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

        Wrappers keep what they count themselves: below `gymnasium.make`, whose own check of the
        order of calls wants to have seen a reset, call `reset` once before the first step.

        Raises:
            CheckpointError: no state of a single environment, or one that does not fit its rollout
                (another world, other weights, dtype or geometry); nothing has changed.
        """
        others: dict[str, Any] = {"chunk": int, "seeded": bool, "ended": (str, type(None))}
        check_state(state, SINGLE, self.rollout, self._shown, others)
        self.rollout.load_state_dict(state["rollout"])
        set_random_state(self, state["np_random"])
        self._chunk, self._seeded = state["chunk"], state["seeded"]
        self._ended = state["ended"]
        if not self.rollout.ready[0]:
            self._shown.forget()
            self._renderer.forget()
            return None
        shown = self._shown.restore(state["shown"], self.world.decode)
        self._renderer.add(partial(picture_of, shown), first=True)
        observed: Observation = self._shown.observation(0)
        return observed

    def render(self) -> Any:
        """Return the last frame, all frames since the last call, or None, as `render_mode` says."""
        return self._renderer.render()

    def close(self) -> None:
        """Close the window if there is one; calling it again does nothing."""
        self._renderer.close()

    def _reward(self, chunk: Chunk) -> float:
        """The reward of a step."""
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
