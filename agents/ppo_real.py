"""The real game as slots of a PPO training: the same agent, learning where it will be scored.

It is the yardstick beside an agent that learned in the dream: what as many tics of the real game
give when they are learned from directly.

Shape suffixes as in `agents/ppo.py`: B slots, n slots named in a call, Z latent channels, P latent
frames, h and w the latent grid.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from magi_world.agents.ppo_actor import Played, full_reward
from magi_world.errors import AgentError
from magi_world.training.collect import Game, GameChunk
from magi_world.world import World

if TYPE_CHECKING:
    from magi_world.agents.ppo import Args

REAL_SETTINGS: dict[str, Any] = {
    "num_slots": 16, "num_steps": 64, "horizon": None, "starts": "opening",
    "expected_termination": False,
}  # fmt: skip
"""defaults of a training in the real game, where they are not those of `Args`"""
SIGNALS = ("damage",)
"""what `signal_weights` may name: the health lost in a chunk, as a share of 100"""
FIRST_SEED = 3_000_000_000
"""the game's seeds of all trainings; neither data nor scores have them"""

_SPAN = 1_000_000_000  # seeds from the first one on, before they begin again
_FULL_HEALTH = 100.0
_OF_DREAMS = {
    "starts": "opening", "expected_termination": False, "temperature": 1.0, "denoising_steps": None,
}  # fmt: skip


class RealSlots:
    """Real games side by side in one process, seen through the world's VAE.

    The reward is -1 at death (or the game's own, as `Args.reward` says) and
    `signal_weights["damage"]` times the health lost, which the game itself reports. An episode ends
    by death, or by the game's own limit, which is no death; `horizon` only cuts it shorter.
    `counters["real_tics"]` are all pictures that the games have drawn, reset chunks included.

    Episode k of a training is played with the game's seed `FIRST_SEED + 100_000 * args.seed + k`.

    Raises:
        AgentError: the game's prompts are not those of the world, or a setting that only a dream
            has is not at its neutral value.
    """

    def __init__(
        self, make_game: Callable[[], Game], world: World, args: "Args", counters: dict[str, int]
    ) -> None:
        for name, neutral in _OF_DREAMS.items():
            if getattr(args, name) != neutral:
                raise AgentError(
                    f"the real game has no {name} {getattr(args, name)!r}: only {neutral!r} works"
                )
        self.args = args
        self.world = world
        self.horizon = args.horizon
        self.counters = {"episodes": 0, "real_tics": 0} | counters
        self.full_reward = full_reward(world, args)
        self.health_B = np.zeros(args.num_slots, np.float32)
        self.games = [make_game() for _ in range(args.num_slots)]
        if self.games[0].prompts != world.card["prompts"]:
            self.close()
            raise AgentError(
                f"the game has the prompts {self.games[0].prompts}, "
                f"the world {world.name!r} {world.card['prompts']}"
            )

    def begin(self, slots: Sequence[int]) -> Tensor:
        """Begin the next episodes of the training in these games."""
        chunks = []
        for slot in slots:
            number = self.args.seed * 100_000 + self.counters["episodes"]
            chunks.append(self.games[slot].reset(FIRST_SEED + number % _SPAN))
            self.health_B[slot] = chunks[-1].health
            if "damage" in self.args.signal_weights and np.isnan(chunks[-1].health):
                raise AgentError(f"{self.world.name!r} reports no health: there is no damage")
            self.counters["episodes"] += 1
        return self._encode(chunks)[:, None]

    def step(self, actions: Sequence[int]) -> Played:
        """Play one chunk in every game."""
        chunks = [game.step(action) for game, action in zip(self.games, actions, strict=True)]
        latents_BZPhw = self._encode(chunks)
        health_B = np.array([chunk.health for chunk in chunks], np.float32)
        lost_B = self._tensor((self.health_B - health_B) / _FULL_HEALTH)
        self.health_B = health_B
        died_B = self._tensor([chunk.terminated for chunk in chunks])
        survived_B = self._tensor([chunk.reward for chunk in chunks])
        reward_B = -died_B if self.args.reward == "penalty" else survived_B / self.full_reward
        if "damage" in self.args.signal_weights:  # of a game without health it would be NaN
            reward_B = reward_B + self.args.signal_weights["damage"] * lost_B
        ended_B = self._tensor([chunk.terminated or chunk.truncated for chunk in chunks]).bool()
        return Played(latents_BZPhw, reward_B, 1.0 - died_B, ended_B, survived_B)

    def close(self) -> None:
        """End the games."""
        for game in self.games:
            game.close()

    def _encode(self, chunks: Sequence[GameChunk]) -> Tensor:
        """Count what was drawn and encode it, `[n, Z, P, h, w]`."""
        self.counters["real_tics"] += sum(chunk.valid_frames for chunk in chunks)
        return self.world.encode(np.stack([chunk.frames for chunk in chunks]))

    def _tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=self.world.device)
