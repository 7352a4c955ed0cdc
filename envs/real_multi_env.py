"""Real games with several players as `pettingzoo.ParallelEnv`: twins of `envs/multi_env.py`."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from magi_world.envs.arguments import check_horizon
from magi_world.envs.multi_env import MultiEnv
from magi_world.envs.real_env import RealEnv
from magi_world.envs.spaces import ACTIONS, choose
from magi_world.errors import ActionError, ConfigError
from magi_world.players import players_of
from magi_world.training.collect import GameChunk


class _RealWhole(RealEnv):
    """A real game whose rewards are kept for the agents that share it."""

    for_players = True
    rewards: list[float]

    def _reward(self, chunk: GameChunk) -> float:
        self.rewards = np.asarray(chunk.reward, float).flatten().tolist()
        return self.rewards[0]


class RealMultiEnv(MultiEnv):
    """The real game of a world with players: the twin of `MultiEnv`, with its spaces.

    It ends where the game does: in Pong at 21 points (all agents terminated) or after 20,000 frames
    (truncated). Rewards are what the game gives each player in a chunk. With text actions it takes
    just the card's prompts and their paraphrases, each standing for its action.

    Args:
        world: name of an embedded world, or a folder; its card names the game.
        game: another name of the game, or an adapter of one's own, see `envs/games.py`.
        max_cycles, render_mode, actions, observations, view, horizon, device, dtype: as in
            `MultiEnv`; a horizon of None leaves the end to the game.

    Raises:
        ConfigError: a keyword whose value is not allowed, a world without players, or one that has
            no real game here.
        WorldNotFound: no world of that name or folder.
        MissingPackage: the game's packages are absent.
    """

    def __init__(
        self,
        world: str | os.PathLike[str] = "pong-duel",
        *,
        game: str | None = None,
        max_cycles: int | None = None,
        render_mode: str | None = None,
        actions: str = "text",
        observations: str = "frames",
        view: str = "whole",
        horizon: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        choose("actions", actions, ACTIONS)
        check_horizon(max_cycles, "max_cycles")
        self._env = _RealWhole(
            world,
            game=game,
            actions="text",
            observations=observations,
            render_mode=render_mode,
            horizon=horizon,
            device=device,
            dtype=dtype,
        )
        card = self._env.card
        if not players_of(card):
            raise ConfigError(f"the world {card['name']!r} has no players: use RealEnv")
        self.world = self._env.world
        self._share(card, actions, observations, view, None, 0)
        self.max_cycles = max_cycles
        self._meant: dict[str, str] = {
            wording: prompt
            for prompt in card["prompts"]
            for key in ("held_out_paraphrases", "paraphrases")
            for wording in (*card.get(key, {}).get(prompt, ()), prompt)
        }

    def _options(self, known: dict[str, Any] | None) -> dict[str, Any] | None:
        return {}  # the real game begins where it begins

    def _read(self, action: Any) -> str:
        text = super()._read(action)
        if text not in self._meant:
            raise ActionError(
                f"{text!r} is no action of the real game: it takes {self._card['prompts']} and the "
                "paraphrases in the world's card"
            )
        return text

    def _prompt(self, texts: Mapping[str, str]) -> str:
        return super()._prompt({agent: self._meant[text] for agent, text in texts.items()})

    def _check_whole(self, prompt: str) -> None:
        """The game knows all combinations of its actions."""

    def _dream(self) -> Any:
        raise ConfigError(f"the real game of {self._card['name']!r} has no states to save")


REAL = "-real"
"""Behind the name of a world, it means the world's real game."""


def parallel_env(name: str | os.PathLike[str], **keywords: Any) -> MultiEnv:
    """Open a world, or with `REAL` behind its name its real game, for several agents.

    Args:
        name: of an embedded world, or a folder.
        keywords: those of `MultiEnv` or, for a real game, of `RealMultiEnv`.

    Raises:
        ConfigError: a keyword whose value is not allowed, or does not go with the world.
        WorldNotFound: no world of that name or folder.
    """
    text = os.fspath(name)
    if text.endswith(REAL) and not os.path.isdir(text):
        return RealMultiEnv(text.removesuffix(REAL), **keywords)
    return MultiEnv(text, **keywords)
