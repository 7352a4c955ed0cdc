"""Self-play by PPO inside a generated world with players: one network plays all of them.

The games of a batched rollout are its slots, as many for each player: a row of the update is one
player of one game, and its reward is what the world's heads say that player gets. Both players of a
game act by the newest weights. The agent is saved at several ages on the way, so that what it has
learned can be measured against what it was.

Settings are those of `agents/ppo.py`, with other defaults (`SETTINGS`); `num_slots` counts rows,
the players of all games.

Shape suffixes as in `agents/ppo.py`: B rows, K players; G games.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from magi_world.agents.files import describe
from magi_world.agents.ppo import Args
from magi_world.agents.ppo_actor import Actor, DreamSlots, Played, Samples
from magi_world.agents.ppo_loop import run
from magi_world.agents.ppo_state import Training
from magi_world.agents.selfplay_agent import SelfPlayAgent, with_player
from magi_world.errors import AgentError, ConfigError
from magi_world.players import compose, players_of
from magi_world.world import World

KIND = "selfplay"
SETTINGS: dict[str, Any] = {
    "num_slots": 64,  # 32 games of two
    "reward": "world",
    "horizon": 32,  # a rally is longer than what threatens in Doom
    "gamma": 0.97,
}
AGES = (0.1, 0.25, 0.5)
"""shares of the training after which the agent is kept as it is then, beside the last"""


class DuelSlots(DreamSlots):
    """Rows of a world with players: K of them, one after the other, are the players of a game."""

    def __init__(
        self, world: World, args: Args, generator: torch.Generator, counters: dict[str, int]
    ) -> None:
        self.players = players_of(world.card)
        count = len(self.players)
        if not count:
            raise AgentError(f"the world {world.name!r} has no players: train with agents/ppo.py")
        if args.num_slots % count:
            raise ConfigError(
                f"num_slots {args.num_slots} is no multiple of the {count} players of a game"
            )
        games = Args(**{**asdict(args), "num_slots": args.num_slots // count})
        super().__init__(world, games, generator, counters)
        self.card = world.card
        self.player_B = torch.arange(count, device=world.device).repeat(games.num_slots)

    def begin(self, slots: Sequence[int]) -> Tensor:
        """Begin games; all rows of a game begin together, `[n, m, Z + K, P, h, w]`."""
        count = len(self.players)
        games = sorted({row // count for row in slots})
        if [row for game in games for row in range(game * count, (game + 1) * count)] != list(
            slots
        ):
            raise ConfigError(f"rows {list(slots)} are not all rows of some games")
        begun = super().begin(games)  # [G, m, Z, P, h, w]
        told = [
            with_player(chunk.repeat_interleave(count, dim=0), self.player_B[list(slots)], count)
            for chunk in begun.unbind(1)
        ]
        return torch.stack(told, dim=1)

    def step(self, actions: Sequence[int]) -> Played:
        """Dream one chunk in every game under what all its players do."""
        count = len(self.players)
        prompts = []
        for first in range(0, len(actions), count):
            own = actions[first : first + count]
            words = {p: self.prompts[a] for p, a in zip(self.players, own, strict=True)}
            prompts.append(compose(self.card, words))
        chunk = self.rollout.step(prompts)
        latents = chunk.latents.repeat_interleave(count, dim=0)
        ended_B = chunk.terminated.float()
        if self.args.expected_termination:
            ended_B = chunk.termination_probability
        reward_B = chunk.reward.flatten()  # [G, K]: rows in order
        return Played(
            with_player(latents, self.player_B, count),
            reward_B / self.full_reward,
            (1.0 - ended_B).repeat_interleave(count),
            chunk.terminated.repeat_interleave(count),
            reward_B,
        )


def train(
    world: World, args: Args, out: str | Path, *, resume: bool = False, show: bool = True
) -> SelfPlayAgent:
    """Train an agent for all players of a world against itself and leave it in the folder `out`.

    The folder gets what `magi_world.agents.ppo.train` leaves, and under `ages/` the agent as it was
    after the shares `AGES` of its training.

    Args:
        world: what is dreamed in; it has players and outcome heads.
        args: the settings; `SETTINGS` are the defaults here.
        out: a folder.
        resume: go on from the checkpoint in `out`.
        show: draw a progress line on stderr.

    Raises:
        AgentError: the world has no players or no outcome heads; there is nothing to resume.
        ConfigError: rows that do not make up whole games, or a reward other than the world's.
    """
    if world.outcome is None:
        raise AgentError(f"the world {world.name!r} has no outcome heads: nothing to learn from")
    if args.reward != "world" or args.signal_weights:
        raise ConfigError("players learn from the rewards of the world: reward must be 'world'")
    out = Path(out)
    players = players_of(world.card)
    channels, *rest = world.config.latent_shape
    description = describe(world, KIND, "dream") | {
        "players": players,
        "latent_shape": [channels + len(players), *rest],
        "history": args.history,
        "channels": list(args.channels),
        "hidden": args.hidden,
        "greedy": args.greedy,
    }
    training = Training(description, args, world.device)
    if resume:
        training.resume(out)

    def charts(actor: Actor, samples: Samples) -> dict[str, float]:
        return {
            # what one player wins the other loses: how often points are made says more
            "charts/points_per_chunk": float(samples.reward.abs().mean()),
            "charts/sum_of_rewards": float(samples.reward.mean()),
        }

    def keep_ages(before: float) -> None:
        for age in AGES:
            if before < age <= training.progress < 1.0:
                training.save(out / "ages" / f"{round(100 * age):02d}")

    def make_slots() -> DuelSlots:
        return DuelSlots(world, args, training.generator, training.counters)

    run(training, make_slots, args, out, charts=charts, after_update=keep_ages, show=show)
    return SelfPlayAgent.load(out, device=world.device)
