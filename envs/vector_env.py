"""A generated world as a vector environment: all slots of one batched rollout, one forward a step.

Gymnasium builds it where `gymnasium.make_vec` is called with an id of this package. Every forward
runs at the full width, also while some slots have ended: what a slot sees then does not depend, to
the last bit, on what the others do.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from magi_world.envs.arguments import check_agents, check_flag, check_horizon
from magi_world.envs.batches import (
    Mask,
    as_autoreset_mode,
    batch_prompts,
    fill_infos,
    object_column,
    slot_seeds,
    split_options,
)
from magi_world.envs.env_state import (
    VECTOR,
    check_state,
    random_state,
    set_random_state,
    unless_refused,
)
from magi_world.envs.rendering import RENDER_MODES, SlotRenderers, render_fps
from magi_world.envs.shown import ShownChunks, pictures_of
from magi_world.envs.spaces import (
    ACTIONS,
    OBSERVATIONS,
    action_space,
    choose,
    max_prompt_length,
    observation_space,
)
from magi_world.errors import ConfigError
from magi_world.players import chunk_prompts, players_of
from magi_world.sampling.arguments import check_count
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.rollout import Starts
from magi_world.world import World, load

OUTPUTS = ("numpy", "torch")
_ARRAYS = ("length", "seeded", "begun", "ended")


class WorldVectorEnv(VectorEnv[Any, Any, Any]):
    """N slots of one generated world; a step conditions one chunk of each on its prompt.

    Observations, rewards and infos are those of `WorldEnv`, one row a slot; infos come as arrays,
    each with a mask `_key` of the slots that it speaks of. What happens to a slot whose episode has
    ended is said by `autoreset_mode`:

    - NEXT_STEP: the next step ignores its action and returns its reset chunk, with reward 0.
    - SAME_STEP: the step that ends it returns its reset chunk; the last observation and info are in
      `infos["final_obs"]` and `infos["final_info"]`.
    - DISABLED: nothing. Stepping before `reset(options={"reset_mask": mask})` raises.

    Args:
        num_envs: slots N.
        world: name of an embedded world, or a folder; or a loaded world, which is then shared.
        actions, observations, horizon, steps, temperature, starts, ignore_termination, device,
            dtype: as in `WorldEnv`.
        render_mode: as in `WorldEnv`; one entry a slot, "human" shows all slots in one window.
        output: "numpy", or "torch": observations, rewards and both kinds of ends are then tensors
            on the world's device (rewards float32), and no observation goes through numpy. Infos
            are arrays in any case.
        autoreset_mode: an `AutoresetMode` or its name.
        max_episode_steps: what `gymnasium.make_vec` was given; it can only shorten the horizon.

    Raises:
        ConfigError: a keyword whose value is not allowed, or a mode that begins episodes by itself
            in a world that has no clips to begin with.
        WorldNotFound: no world of that name or folder.
        MissingPackage: "human" without pygame-ce.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES)}
    for_players = False
    """whether the world may have players; their rewards are then columns, `[N, players]`"""

    def __init__(
        self,
        num_envs: int = 1,
        world: str | os.PathLike[str] | World = "doom-take-cover",
        *,
        actions: str = "text",
        observations: str = "frames",
        output: str = "numpy",
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        horizon: int | None = None,
        max_episode_steps: int | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
        starts: Starts = "opening",
        ignore_termination: bool = False,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        # What is wrong is said before the weights are read.
        self.num_envs = check_count("num_envs", num_envs)
        self._actions = choose("actions", actions, ACTIONS)
        self._observations = choose("observations", observations, OBSERVATIONS)
        self._output = choose("output", output, OUTPUTS)
        self.autoreset_mode = as_autoreset_mode(autoreset_mode)
        if render_mode is not None:
            choose("render_mode", render_mode, RENDER_MODES)
        self.render_mode = render_mode
        check_horizon(horizon)
        check_horizon(max_episode_steps, "max_episode_steps")
        self.ignore_termination = check_flag("ignore_termination", ignore_termination)

        if isinstance(world, World):
            self.world = world.to(device, dtype)
        else:
            self.world = load(os.fspath(world), device=device, dtype=dtype)
        self.rollout = self.world.rollout(
            self.num_envs, steps=steps, temperature=temperature, starts=starts
        )
        card, config, bank = self.world.card, self.world.config, self.world.bank
        check_agents(card, self.for_players)
        if self.autoreset_mode != AutoresetMode.DISABLED:
            if not (bank.num_openings if starts == "opening" else len(bank)):
                raise ConfigError(
                    f"autoreset_mode {self.autoreset_mode.name!r}: the world {self.world.name!r} "
                    "has no clips to begin episodes with; use 'DISABLED' and reset with options"
                )
        limits = [card.get("horizon") if horizon is None else horizon, max_episode_steps]
        self.horizon: int | None = min((n for n in limits if n is not None), default=None)
        self._prompts = chunk_prompts(card)
        players = len(players_of(card))
        self._reward_shape = (self.num_envs, players) if players else (self.num_envs,)
        self.max_prompt_length = max_prompt_length(config)
        self.single_action_space = action_space(actions, self._prompts, self.max_prompt_length)
        self.single_observation_space = observation_space(observations, config)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.metadata = {
            **self.metadata,
            "render_fps": render_fps(render_mode, config.fps, config.chunk_frames),
            "autoreset_mode": self.autoreset_mode,
        }
        self._renderers = SlotRenderers(
            render_mode, self.num_envs, fps=config.fps, title=self.world.name
        )
        self._length = np.zeros(self.num_envs, np.int64)  # chunks since each slot's last reset
        self._seeded = np.zeros(self.num_envs, np.bool_)
        self._begun = np.zeros(self.num_envs, np.bool_)
        self._ended = np.zeros(self.num_envs, np.bool_)
        shape = (self.num_envs, *config.latent_shape)
        nothing = torch.zeros(shape, dtype=torch.float32, device=self.world.device)
        self._shown = ShownChunks(nothing, self._observations, self._output, config.frames_shape)

    # ---------------------------------------------------------------- reset

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Any]]:
        """Begin episodes, in all slots or in those of a mask, and return all observations.

        A slot that is not reset keeps its cache, time, generator and observation; its rows of the
        infos are masked out.

        Args:
            seed: slot i is seeded with `seed + i`, or with entry i of a list, None among them
                leaving a generator as it is; without a seed the generators go on where they were,
                and the first reset of a slot draws a seed from `np_random`.
            options: those of `WorldEnv.reset`, one start for all slots that are reset, and
                `reset_mask`, bool `[num_envs]`.

        Raises:
            ResetOptionError: an unknown option, two that exclude each other, or a wrong value.
            PromptError: a prompt among the options that cannot be used.
            ConfigError: seeds that cannot be used.
            ResetNeeded: a mask at the first reset that leaves slots out.

        A reset that is refused leaves the running episodes as they were.
        """
        seeds = slot_seeds(seed, self.num_envs)
        slots, start = split_options(options, self.num_envs)
        unbegun = np.flatnonzero(~self._begun)
        if set(unbegun.tolist()) - set(slots):
            raise ResetNeeded(f"slots {unbegun.tolist()} were never reset: reset all slots first")
        with unless_refused(self):
            for slot in slots:
                if seeds[slot] is None and not self._seeded[slot]:
                    seeds[slot] = int(self.np_random.integers(2**31))
            given = {slot: value for slot in slots if (value := seeds[slot]) is not None}
            chunk = self._begin(slots, given, start)
        if isinstance(seed, (int, np.integer)):
            super().reset(seed=int(seed))
        infos: dict[str, Any] = {}
        self._place_reset(slots, chunk, infos)
        return self._shown.observation(), infos

    def _begin(self, slots: list[int], seeds: Mapping[int, int], start: dict[str, Any]) -> Chunk:
        """Reset slots of the rollout; an error leaves their generators as they were."""
        generators = self.rollout.generators
        before = {slot: generators[slot].get_state() for slot in slots}
        try:
            self.rollout.seed(list(seeds), seeds.values())
            return self.rollout.reset(slots, **start)
        except BaseException:
            for slot, state in before.items():
                generators[slot].set_state(state)
            raise

    def _place_reset(
        self, slots: list[int], chunk: Chunk, infos: dict[str, Any], *, at_once: bool = False
    ) -> None:
        """Take over the reset chunks, one row per slot named."""
        self._seeded[slots] = True
        self._begun[slots] = True
        self._ended[slots] = False
        self._length[slots] = 0
        self._shown.replace(chunk.latents, lambda: chunk.frames, slots)
        rows_of = {slot: row for row, slot in enumerate(slots)}
        self._renderers.add(partial(pictures_of, chunk), rows_of, first=True, at_once=at_once)
        fill_infos(infos, slots, self._columns(chunk, slots), self.num_envs)

    # ---------------------------------------------------------------- step

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Generate one chunk a slot, one forward for all, and return what Gymnasium expects.

        Args:
            actions: one a slot: texts, or indices as an array, a list or a torch tensor `[N]`.

        Returns:
            Observations `[N, ...]`, rewards float64 `[N]` (float32 with torch), terminated and
            truncated bool `[N]`, infos.

        Raises:
            ResetNeeded: before the first reset; with DISABLED also where slots have ended.
            PromptError, ActionError: not one action a slot, or a wrong one; it names the slot.

        A step that is refused leaves everything as it was, generators included. An error of another
        kind, such as one of the device's memory, may come when the chunks have been generated: then
        the episodes have gone on by them.
        """
        if not self._begun.all():
            raise ResetNeeded("step() before the first reset(): call reset()")
        over = np.flatnonzero(self._ended).tolist()
        if over and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeeded(
                f"the episodes of slots {over} have ended: "
                "call reset(options={'reset_mask': mask}) for them"
            )
        prompts = batch_prompts(
            actions, self._actions, self._prompts, self.max_prompt_length,
            num_envs=self.num_envs, ignored=over, check=self.world.check_prompt,
        )  # fmt: skip
        reward = torch.zeros(self._reward_shape, dtype=torch.float32, device=self.world.device)
        terminated = np.zeros(self.num_envs, np.bool_)
        truncated = np.zeros(self.num_envs, np.bool_)
        infos: dict[str, Any] = {}
        live = np.flatnonzero(~self._ended).tolist()
        if live:
            chunk = self._forward(prompts, over)
            rows = live if over else slice(None)  # which costs less than a list
            self._length[rows] += 1
            reward[rows] = chunk.reward[rows]
            if not self.ignore_termination:
                terminated[rows] = chunk.terminated.cpu().numpy()[rows]
            if self.horizon is not None:
                truncated[rows] = self._length[rows] >= self.horizon
            self._place_step(live, chunk, infos)
        if over:
            self._place_reset(over, self.rollout.reset(over), infos)
        self._ended = terminated | truncated
        if self._ended.any() and self.autoreset_mode == AutoresetMode.SAME_STEP:
            self._restart_at_once(infos)
        observations = self._shown.observation()
        if self._output == "torch":
            ends = [torch.from_numpy(mask).to(reward.device) for mask in (terminated, truncated)]
            return observations, reward, ends[0], ends[1], infos
        return observations, reward.double().cpu().numpy(), terminated, truncated, infos

    def _forward(self, prompts: list[str], over: list[int]) -> Chunk:
        """Step the rollout; slots that have ended ride along and keep their generators.

        Their own rows are thrown away and their next reset overwrites the rest, so whether they
        ride or stand still, which depends on the others, changes nothing for them.
        """
        generators = self.rollout.generators
        before = {slot: generators[slot].get_state() for slot in over}
        chunk = self.rollout.step(prompts)
        for slot, state in before.items():
            generators[slot].set_state(state)
        return chunk

    def _place_step(self, live: list[int], chunk: Chunk, infos: dict[str, Any]) -> None:
        self._shown.replace(chunk.latents, lambda: chunk.frames)
        rows_of = {slot: slot for slot in live}
        whole = len(live) == self.num_envs  # else the others' reset chunks come next
        self._renderers.add(partial(pictures_of, chunk), rows_of, whole=whole)
        columns = self._columns(chunk, live, rows=None if whole else live)
        fill_infos(infos, live, columns, self.num_envs)

    def _restart_at_once(self, infos: dict[str, Any]) -> None:
        """Begin anew where an episode has just ended, and keep its end in the infos."""
        over = np.flatnonzero(self._ended).tolist()
        last = [self._shown.observation(slot) for slot in over]
        names = [name for name in infos if not name.startswith("_")]
        final = {
            "final_obs": object_column(last),
            "final_info": {name: infos[name][over] for name in names},
        }
        self._place_reset(over, self.rollout.reset(over), infos, at_once=True)
        fill_infos(infos, over, final, self.num_envs)

    # ---------------------------------------------------------------- what comes out

    def _columns(
        self, chunk: Chunk, slots: list[int], rows: list[int] | None = None
    ) -> dict[str, Any]:
        """Infos of slots from a chunk with one row each, or from these rows of it."""
        chosen = range(len(slots)) if rows is None else rows
        numbers = {"termination_probability": chunk.termination_probability, **chunk.signals}
        return {
            "prompt": object_column([chunk.prompts[row] or "" for row in chosen]),
            "chunk": self._length[slots],
            **{
                name: values.double().cpu().numpy()[slice(None) if rows is None else rows]
                for name, values in numbers.items()
            },
        }

    def render(self) -> tuple[Any, ...] | None:
        """One entry a slot as `render_mode` says; None without a mode and for "human"."""
        return self._renderers.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the window if there is one."""
        self._renderers.close()

    # ---------------------------------------------------------------- save, restore

    @property
    def ended(self) -> Mask:
        """Which slots wait for their reset, bool `[N]`: a copy."""
        return self._ended.copy()

    def end(self, slots: Sequence[int]) -> None:
        """Let the episodes of these slots end here, as if they had been truncated."""
        self._ended[list(slots)] = True

    def get_state(self) -> dict[str, Any]:
        """Everything that decides the future of all slots, copied: see `WorldEnv.get_state`."""
        arrays = {name: getattr(self, f"_{name}") for name in _ARRAYS}
        return {
            "env": VECTOR,
            "rollout": self.rollout.state_dict(),
            "shown": self._shown.state(),
            "np_random": random_state(self),
            **{name: torch.from_numpy(array.copy()) for name, array in arrays.items()},
        }

    def set_state(self, state: Mapping[str, Any]) -> Any:
        """Go on from a saved state; returns its observations, or None before the first reset.

        Raises:
            CheckpointError: no state of a vector environment, or one that does not fit its
                rollout; nothing has changed.
        """
        arrays = {name: getattr(self, f"_{name}") for name in _ARRAYS}
        check_state(state, VECTOR, self.rollout, self._shown, arrays)
        self.rollout.load_state_dict(state["rollout"])
        set_random_state(self, state["np_random"])
        for name in _ARRAYS:
            setattr(self, f"_{name}", state[name].cpu().numpy().copy())
        if not self._begun.all():
            self._shown.forget()
            self._renderers.forget()
            return None
        shown = self._shown.restore(state["shown"], self.world.decode)
        rows_of = {slot: slot for slot in range(self.num_envs)}
        self._renderers.add(partial(pictures_of, shown), rows_of, first=True)
        return self._shown.observation()
