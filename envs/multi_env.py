"""Generated worlds with several agents, as `pettingzoo.ParallelEnv`.

Such an environment steers one environment that knows a single prompt a chunk: the whole. In
a world with players the card's template makes that prompt of everybody's; in a world for one agent
several vote or take turns. PettingZoo's own wrapper makes turn-based environments of them, see
`envs/pong_duel_v0.py`.
"""

import os
from collections.abc import Mapping
from typing import Any

from gymnasium.error import ResetNeeded
from pettingzoo import ParallelEnv

from magi_world.config import WorldConfig
from magi_world.envs.arguments import RESET_OPTIONS, check_horizon
from magi_world.envs.rendering import RENDER_MODES
from magi_world.envs.sharing import Arbiter, OwnView, read_action, texts_of
from magi_world.envs.spaces import (
    ACTIONS,
    OBSERVATIONS,
    action_space,
    as_prompt,
    choose,
    max_prompt_length,
)
from magi_world.envs.spaces import observation_space as chunk_space
from magi_world.envs.world_env import WorldEnv
from magi_world.errors import PromptError
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.rollout import Starts
from magi_world.world import World

Results = tuple[
    dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]
]


class _Whole(WorldEnv):
    """A world whose rewards are kept for the agents that share it."""

    for_players = True
    rewards: list[float]

    def _reward(self, chunk: Chunk) -> float:
        self.rewards = chunk.reward.flatten().tolist()
        return self.rewards[0]


class MultiEnv(ParallelEnv[str, Any, Any]):  # type: ignore[misc]  # PettingZoo has no types
    """A generated world with several agents: each chunk is conditioned on what all of them say.

    Observations, infos and options of `reset` are those of `WorldEnv`, the same for every agent
    unless it sees its own side only; options that no world knows are ignored, as PettingZoo's own
    tests expect. Rewards are the players' own. An agent that `step` gets no action for does the
    no-op. All agents end together; after that `agents` is empty until the next reset.

    In a world for one agent `arbitration` says how several of them choose its prompt: "vote" takes
    the one that most agents gave (the lowest agent's of equals), "turns" that of agent t mod N in
    chunk t, while those of the others are checked and ignored. All of them get its reward.

    Args:
        world: name of an embedded world, or a folder.
        max_cycles: chunks after which all agents are truncated; it can only shorten the horizon.
        actions: "text", any words for what one player does, or "discrete", an index into the card's
            prompts, 0 the no-op.
        observations: "frames", "latent" or "both".
        view: "whole", or "own": the half of the picture that the card's `sides` give to a player.
        arbitration: "vote" or "turns", in a world for one agent; None in a world with players.
        num_voters: agents of such a world, called `agent_0`, `agent_1`, ...
        render_mode, horizon, steps, temperature, starts, ignore_termination, device, dtype: as in
            `WorldEnv`.

    Raises:
        ConfigError: a keyword whose value is not allowed, or does not go with the world.
        WorldNotFound: no world of that name or folder.
        MissingPackage: "human" without pygame-ce.
    """

    metadata: dict[str, Any] = {
        "name": "magi_world",
        "render_modes": list(RENDER_MODES),
        "is_parallelizable": True,
    }

    world: World | None
    """None for a real game that is not observed in latents"""
    _env: Any
    """the whole: the world, or its real game, for a single agent"""

    def __init__(
        self,
        world: str | os.PathLike[str] = "pong-duel",
        *,
        max_cycles: int | None = None,
        render_mode: str | None = None,
        actions: str = "text",
        observations: str = "frames",
        view: str = "whole",
        arbitration: str | None = None,
        num_voters: int = 2,
        horizon: int | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
        starts: Starts = "opening",
        ignore_termination: bool = False,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        choose("actions", actions, ACTIONS)
        check_horizon(max_cycles, "max_cycles")
        self._env = _Whole(
            world,
            actions="text",
            observations=observations,
            render_mode=render_mode,
            horizon=horizon,
            steps=steps,
            temperature=temperature,
            starts=starts,
            ignore_termination=ignore_termination,
            device=device,
            dtype=dtype,
        )
        self.world = self._env.world
        self._share(self._env.world.card, actions, observations, view, arbitration, num_voters)
        self.max_cycles = max_cycles

    def _share(
        self,
        card: dict[str, Any],
        actions: str,
        observations: str,
        view: str,
        arbitration: str | None,
        num_voters: int,
    ) -> None:
        """Set up the agents of the whole environment `_env`."""
        self._card = card
        self._actions = actions
        config = WorldConfig.from_dict(card["config"])
        self._arbiter = Arbiter.of(card, arbitration, num_voters)
        self.possible_agents = self._arbiter.agents
        self.agents: list[str] = []
        self._max_length = max_prompt_length(config)
        self._view = OwnView(card, view)
        whole = chunk_space(choose("observations", observations, OBSERVATIONS), config)
        prompts = card["prompts"]
        self._shortest: str = min(prompts, key=lambda prompt: len(prompt.encode()))
        self.action_spaces = {
            agent: action_space(actions, prompts, self._max_length)
            for agent in self.possible_agents
        }
        self.observation_spaces = {
            agent: self._view.space(whole, agent) for agent in self.possible_agents
        }
        self.state_space = whole
        self.render_mode = self._env.render_mode
        self.metadata = {
            **self.metadata,
            "name": f"{card['name'].replace('-', '_')}_v0",
            "render_fps": self._env.metadata["render_fps"],
        }
        self._whole: Any = None  # the last observation, before it is divided

    def observation_space(self, agent: str) -> Any:
        """The space of what an agent sees; the same object in every call."""
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> Any:
        """The space of what an agent does; the same object in every call."""
        return self.action_spaces[agent]

    @property
    def horizon(self) -> int | None:
        """Chunks after which all agents are truncated."""
        limits = [n for n in (self._env.horizon, self.max_cycles) if n is not None]
        return min(limits, default=None)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Begin an episode with all agents.

        Args:
            seed: as in `WorldEnv.reset`.
            options: those of `WorldEnv.reset`; unknown keys are ignored.

        Raises:
            ResetOptionError, PromptError, ConfigError: as `WorldEnv.reset`.
        """
        known = options
        if isinstance(options, Mapping):  # anything else is refused below
            known = {key: value for key, value in options.items() if key in RESET_OPTIONS}
        self._whole, info = self._env.reset(seed=seed, options=self._options(known))
        self.agents = list(self.possible_agents)
        self._arbiter.begin()
        return self._divide(self.agents), {agent: dict(info) for agent in self.agents}

    def _options(self, known: dict[str, Any] | None) -> dict[str, Any] | None:
        return known

    def step(self, actions: Mapping[str, Any]) -> Results:
        """Generate one chunk under what the agents do.

        Args:
            actions: one a living agent; who is left out does the no-op.

        Returns:
            Observations, rewards, terminations, truncations and infos by agent. `info["prompt"]` is
            the chunk's prompt, `info["action"]` the words of the agent's own.

        Raises:
            ResetNeeded: before the first reset or after the end of an episode.
            ActionError, PromptError: a wrong action or an agent that is not alive; the message
                names it, and nothing has changed.
        """
        if not self.agents:
            raise ResetNeeded("step() with no agents alive: call reset()")
        texts = texts_of(actions, self.agents, self._read)
        prompt = self._prompt(texts)
        try:
            observation, _, terminated, truncated, info = self._env.step(prompt)
        except PromptError as wrong:  # each could be used, but all of them in the template cannot
            raise PromptError(f"{', '.join(texts)} together: {wrong}") from None
        self._whole = observation
        self._arbiter.advance()
        living = self.agents
        if self.max_cycles is not None and info["chunk"] >= self.max_cycles:
            truncated = True
        if terminated or truncated:
            self.agents = []
        noop = self._card["prompts"][0]
        rewards = self._arbiter.rewards(self._env.rewards)
        return (
            self._divide(living),
            {agent: rewards[agent] for agent in living},
            dict.fromkeys(living, terminated),
            dict.fromkeys(living, truncated),
            {agent: {**info, "action": texts.get(agent, noop)} for agent in living},
        )

    def check_action(
        self, agent: str, action: Any, beside: Mapping[str, Any] | None = None
    ) -> None:
        """Refuse an action of an agent with which no `step` could succeed.

        Args:
            agent, action: who does what.
            beside: what some of the others do. Of the rest it is assumed that they say little.

        Raises:
            ActionError, PromptError: as `step`; the message names the agent.
        """
        texts = texts_of({**(beside or {}), agent: action}, self.agents, self._read)
        others = dict.fromkeys(self.agents, self._shortest)
        try:
            self._check_whole(self._prompt({**others, **texts}))
        except PromptError as wrong:
            raise PromptError(f"{agent}, together with the others: {wrong}") from None

    def _read(self, action: Any) -> str:
        """The words of one agent's action."""
        text = read_action(action, self._actions, self._card["prompts"], self._max_length)
        if self._arbiter.arbitration is not None:  # also of those whose words are not chosen
            self._check_whole(text)
        return text

    def _prompt(self, texts: Mapping[str, str]) -> str:
        """The chunk's prompt from the agents' words."""
        return self._arbiter.prompt(texts)

    def _check_whole(self, prompt: str) -> None:
        """Refuse a prompt that the whole cannot be steered by."""
        self._env.world.check_prompt(as_prompt(prompt, self._max_length))

    def _divide(self, agents: list[str]) -> dict[str, Any]:
        return {agent: self._view.of(self._whole, agent) for agent in agents}

    def state(self) -> Any:
        """The whole last observation, whatever the agents see of it.

        Raises:
            ResetNeeded: there was no reset yet.
        """
        if self._whole is None:
            raise ResetNeeded("state() before the first reset(): there is none yet")
        return OwnView.copy(self._whole)

    def get_state(self) -> dict[str, Any]:
        """Everything that decides the future, copied; see `WorldEnv.get_state`, whose form it has.

        Raises:
            ConfigError: a real game, which cannot be saved.
        """
        return self._dream().get_state()

    def set_state(self, state: Mapping[str, Any]) -> dict[str, Any] | None:
        """Go on from a saved state; returns its observations by agent, None before a reset.

        Raises:
            CheckpointError: as `WorldEnv.set_state`.
            ConfigError: a real game, which cannot be restored.
        """
        dream = self._dream()
        self._whole = dream.set_state(state)
        chunk = dream.chunk
        self._arbiter.begin(chunk)
        over = dream.over or (self.max_cycles is not None and chunk >= self.max_cycles)
        self.agents = [] if over else list(self.possible_agents)
        return None if self._whole is None else self._divide(self.possible_agents)

    def _dream(self) -> _Whole:
        dream: _Whole = self._env
        return dream

    def render(self) -> Any:
        """Return the last frame, all frames since the last call, or None, as `render_mode` says."""
        return self._env.render()

    def close(self) -> None:
        """Close the window if there is one, and end a real game."""
        self._env.close()
