"""The agent that self-play trains: one network for all players, told whose move it is.

To the latents of a chunk it is given one more channel a player, 1 everywhere for the player that it
plays and 0 for the others. All else is as in `agents/ppo_agent.py`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from magi_world.agents.ppo_agent import PPOAgent
from magi_world.errors import AgentError

if TYPE_CHECKING:
    from magi_world.world import World


def with_player(latents_BZPhw: Tensor, player_B: Tensor, num_players: int) -> Tensor:
    """Append channels that say which player sees each row, `[B, Z + players, P, h, w]`."""
    told_BK = torch.nn.functional.one_hot(player_B, num_players).to(latents_BZPhw.dtype)
    planes = told_BK[:, :, None, None, None].expand(-1, -1, *latents_BZPhw.shape[2:])
    return torch.cat([latents_BZPhw, planes], dim=1)


class SelfPlayAgent(PPOAgent):
    """A policy for every player of a world; `reset` says which one it plays.

    Its description is that of a PPO agent with `players` and, in `latent_shape`, a channel more for
    each of them.
    """

    _player_B: Tensor | None = None

    @property
    def players(self) -> list[str]:
        """The players that it can be, in the card's order."""
        return list(self.description["players"])

    def reset(self, n: int, seed: int | None = None, player: str | None = None) -> None:
        """Begin n episodes as `player`; row i's generator is seeded with `seed + i`.

        Raises:
            AgentError: no player of that name.
        """
        if player not in self.players:
            raise AgentError(f"player {player!r} is not one of {self.players}: reset(player=...)")
        super().reset(n, seed)
        self._player_B = torch.full((n,), self.players.index(player))

    @torch.inference_mode()
    def act(self, obs: npt.NDArray[Any] | Tensor) -> npt.NDArray[np.int64]:
        """Choose an action of the player for each row of latents `[n, Z, P, h, w]`.

        Raises:
            NotReset: `reset` was never called.
            AgentError: another number of rows than `reset` was given, or latents of another shape.
        """
        latents = torch.as_tensor(obs, dtype=torch.float32)
        told = self._player_B
        if told is not None:
            channels, *rest = self.description["latent_shape"]
            expected = (len(told), channels - len(self.players), *rest)
            if tuple(latents.shape) != expected:
                raise AgentError(f"latents of shape {tuple(latents.shape)}, expected {expected}")
            latents = with_player(latents, told.to(latents.device), len(self.players))
        return super().act(latents)

    def check_fits(self, world: "World") -> None:
        """Raise `AgentError` unless the agent was trained on the world's players and latents."""
        from magi_world.agents.files import check_fits
        from magi_world.players import players_of

        channels, *rest = self.description["latent_shape"]
        own = {**self.description, "latent_shape": [channels - len(self.players), *rest]}
        check_fits(own, world)
        if self.players != players_of(world.card):
            raise AgentError(
                f"the agent plays {self.players}, the world {world.name!r} has the players "
                f"{players_of(world.card)}"
            )

    @classmethod
    def load(
        cls, folder: str | Path, *, device: torch.device | str = "cpu", greedy: bool | None = None
    ) -> Self:
        """Read an agent that `save` wrote.

        Raises:
            AgentError: a file is missing, is not one of an agent, or its weights do not fit.
        """
        agent = super().load(folder, device=device, greedy=greedy)
        if len(agent.description.get("players", ())) < 2:
            raise AgentError(f"{folder} holds no agent of a world with players")
        return agent
