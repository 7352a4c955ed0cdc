"""Many games of a world with players at once: arrays by agent, one forward for all games."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from magi_world.envs.arguments import check_horizon
from magi_world.envs.batches import batch_prompts
from magi_world.envs.sharing import OwnView
from magi_world.envs.spaces import ACTIONS, action_space, choose
from magi_world.envs.vector_env import WorldVectorEnv
from magi_world.errors import ActionError, ConfigError, PromptError
from magi_world.players import compose, players_of
from magi_world.world import World


class WholeVectorEnv(WorldVectorEnv):
    """The games as one vector environment whose rewards are columns, `[N, players]`."""

    for_players = True


class ParallelVectorEnv:
    """N games of one world with players; a step conditions one chunk of each.

    What `magi_world.envs.multi_env.MultiEnv` does for one game, for N of them: every dictionary by
    agent holds arrays with one row a game. PettingZoo has no interface for this; the names are
    those of Gymnasium's `VectorEnv` and of `ParallelEnv`. Games end and begin again each for
    itself, as `autoreset_mode` says (see `WorldVectorEnv`); `agents` are always all players.

    Args:
        num_envs: games N.
        world: name of an embedded world, or a folder; or a loaded world, which is then shared.
        actions: "text" or "discrete"; `[N]` for each agent.
        view: "whole" or "own", as in `MultiEnv`.
        max_cycles: chunks after which a game is truncated; it can only shorten the horizon.
        keywords: observations, output, autoreset_mode, render_mode, horizon, steps, temperature,
            starts, ignore_termination, device, dtype: as in `WorldVectorEnv`.

    Raises:
        ConfigError: a keyword whose value is not allowed, or a world without players.
        WorldNotFound: no world of that name or folder.
        MissingPackage: "human" without pygame-ce.
    """

    def __init__(
        self,
        num_envs: int = 1,
        world: str | World = "pong-duel",
        *,
        actions: str = "text",
        view: str = "whole",
        max_cycles: int | None = None,
        **keywords: Any,
    ) -> None:
        self._actions = choose("actions", actions, ACTIONS)
        check_horizon(max_cycles, "max_cycles")
        self._env = WholeVectorEnv(
            num_envs, world, actions="text", max_episode_steps=max_cycles, **keywords
        )
        self.world = self._env.world
        self._card = self.world.card
        self.possible_agents = players_of(self._card)
        if not self.possible_agents:
            raise ConfigError(f"the world {self.world.name!r} has no players: use WorldVectorEnv")
        self.agents = list(self.possible_agents)
        self.num_envs = self._env.num_envs
        self._view = OwnView(self._card, view)
        self._prompts: list[str] = self._card["prompts"]
        self._max_length = self._env.max_prompt_length
        whole = self._env.single_observation_space
        self.single_observation_spaces = {a: self._view.space(whole, a) for a in self.agents}
        self.single_action_spaces = {
            agent: action_space(actions, self._prompts, self._max_length) for agent in self.agents
        }
        self._batched = {
            kind: {agent: batch_space(space, self.num_envs) for agent, space in spaces.items()}
            for kind, spaces in (
                ("observation", self.single_observation_spaces),
                ("action", self.single_action_spaces),
            )
        }
        self.metadata = self._env.metadata

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """What happens to games that have ended."""
        return self._env.autoreset_mode

    @property
    def horizon(self) -> int | None:
        """Chunks after which a game is truncated."""
        return self._env.horizon

    def observation_space(self, agent: str) -> Any:
        """The space of what an agent sees of all games; the same object in every call."""
        return self._batched["observation"][agent]

    def action_space(self, agent: str) -> Any:
        """The space of what an agent does in all games; the same object in every call."""
        return self._batched["action"][agent]

    def reset(
        self,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begin games, in all slots or in those of `options["reset_mask"]`.

        Args:
            seed, options: as in `WorldVectorEnv.reset`.

        Raises as `WorldVectorEnv.reset`.
        """
        whole, infos = self._env.reset(seed=seed, options=options)
        return self._divide(whole), {agent: self._own(infos, agent) for agent in self.agents}

    def step(
        self, actions: Mapping[str, Any]
    ) -> tuple[
        dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], dict[str, dict[str, Any]]
    ]:
        """Generate one chunk a game under what all agents do.

        Args:
            actions: `[N]` an agent: texts, or indices as a list, an array or a torch tensor. An
                agent that is left out does the no-op in all games.

        Returns:
            By agent: observations `[N, ...]`, rewards `[N]`, terminations and truncations bool
            `[N]`, infos.

        Raises:
            ResetNeeded: before the first reset; with DISABLED also where games have ended.
            PromptError, ActionError: a wrong action, or texts that are too long together; the
                message names the agents.
        """
        prompts = self._compose(actions)
        try:
            whole, rewards, terminated, truncated, infos = self._env.step(prompts)
        except PromptError as wrong:  # each could be used, but all of them in the template cannot
            raise PromptError(f"{', '.join(actions)} together: {wrong}") from None
        return (
            self._divide(whole),
            {agent: _copy(rewards[:, column]) for column, agent in enumerate(self.agents)},
            {agent: _copy(terminated) for agent in self.agents},
            {agent: _copy(truncated) for agent in self.agents},
            {agent: self._own(infos, agent) for agent in self.agents},
        )

    def _compose(self, actions: Mapping[str, Any]) -> list[str]:
        if not isinstance(actions, Mapping):
            raise ActionError(f"actions {actions!r}: a dictionary by agent is needed")
        strangers = [agent for agent in actions if agent not in self.agents]
        if strangers:
            raise ActionError(f"actions of {strangers}: the players are {self.agents}")
        ignored = [int(slot) for slot in np.flatnonzero(self._env.ended)]
        texts = {}
        for agent, rows in actions.items():
            try:
                texts[agent] = batch_prompts(
                    rows, self._actions, self._prompts, self._max_length,
                    num_envs=self.num_envs, ignored=ignored,
                )  # fmt: skip
            except (PromptError, ActionError) as wrong:
                raise type(wrong)(f"{agent}: {wrong}") from None
        return [
            compose(self._card, {agent: rows[slot] for agent, rows in texts.items()})
            for slot in range(self.num_envs)
        ]

    def _divide(self, whole: Any) -> dict[str, Any]:
        return {agent: self._view.of(whole, agent) for agent in self.agents}

    def _own(self, infos: dict[str, Any], agent: str) -> dict[str, Any]:
        """An agent's copy of the infos; of final observations it sees what it sees of others."""
        own = copy.deepcopy(infos)
        for slot in np.flatnonzero(own.get("_final_obs", ())):
            own["final_obs"][slot] = self._view.of(own["final_obs"][slot], agent)
        return own

    def get_state(self) -> dict[str, Any]:
        """Everything that decides the future of all games, copied: see `WorldEnv.get_state`."""
        return self._env.get_state()

    def set_state(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """Go on from a saved state; returns its observations by agent.

        Raises:
            CheckpointError: as `WorldVectorEnv.set_state`.
        """
        whole = self._env.set_state(state)
        return None if whole is None else self._divide(whole)

    def render(self) -> tuple[Any, ...] | None:
        """One entry a game, as `render_mode` says."""
        return self._env.render()

    def close(self) -> None:
        """Close the window if there is one; calling it again does nothing."""
        self._env.close()


def _copy(rows: Any) -> Any:
    return rows.copy() if isinstance(rows, np.ndarray) else rows.clone()
