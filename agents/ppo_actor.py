"""The side of a PPO training that plays: running episodes, their histories, what is learned from.

`Actor` samples actions and gathers what one update needs; where the chunks come from is behind
`Slots`: `DreamSlots` is a batched rollout of a world, `agents/ppo_real.py` has the real game.

Shape suffixes as in `agents/ppo.py`: T chunks of one update, B slots, n slots named in a call,
A actions, C channels of a stack, Z latent channels, P latent frames, h and w the latent grid, m
chunks that a slot begins with.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from magi_world.agents.ppo_agent import Network, extend_history, flatten_chunk, start_history
from magi_world.errors import AgentError
from magi_world.players import players_of
from magi_world.sampling.chunk import Chunk
from magi_world.world import World

if TYPE_CHECKING:
    from magi_world.agents.ppo import Args


@dataclass
class Samples:
    """What one update learns from; every field is a tensor `[T, B, ...]`."""

    stack: Tensor
    action: Tensor
    logp: Tensor
    value: Tensor
    next_value: Tensor
    reward: Tensor
    continues: Tensor
    cut: Tensor


@dataclass(frozen=True)
class Played:
    """What one chunk of all slots gave; on the device of the training."""

    latents: Tensor
    """float32 `[B, Z, P, h, w]`"""
    reward: Tensor
    """what is learned from, float32 `[B]`"""
    continues: Tensor
    """the share of each slot that goes on behind the chunk, float32 `[B]`"""
    ended: Tensor
    """where the episode is over by itself, bool `[B]`"""
    survived: Tensor
    """what counts in the episode's return, in tics, float32 `[B]`"""


class Slots(Protocol):
    """Episodes that run side by side, in a dream or in the real game."""

    horizon: int | None
    """chunks after which a slot is cut off; None leaves it to the game"""
    counters: dict[str, int]
    """what was used since the training began: "episodes" begun and, in the real game, "real_tics";
    a checkpoint keeps them"""

    def begin(self, slots: Sequence[int]) -> Tensor:
        """Begin new episodes; return the chunks that they begin with, `[n, m, Z, P, h, w]`.

        m is 1 or the agent's history.
        """

    def step(self, actions: Sequence[int]) -> Played:
        """Play one chunk in every slot, each under the prompt index given for it."""

    def close(self) -> None:
        """End whatever runs."""


class Rewards(Protocol):
    """The settings that say what is learned from; see `Args` of `agents/ppo.py`."""

    @property
    def reward(self) -> str: ...
    @property
    def signal_weights(self) -> Mapping[str, float]: ...
    @property
    def expected_termination(self) -> bool: ...


def learned_from(chunk: Chunk, args: Rewards, full_reward: float) -> tuple[Tensor, Tensor]:
    """Return the reward that is learned from and the share that goes on, float32 `[B]` each."""
    ended_B = chunk.terminated.float()
    if args.expected_termination:
        ended_B = chunk.termination_probability
    reward_B = -ended_B if args.reward == "penalty" else chunk.reward / full_reward
    for name, weight in args.signal_weights.items():
        reward_B = reward_B + weight * chunk.signals[name]
    return reward_B, 1.0 - ended_B


def check_signals(world: World, args: Rewards, real: Sequence[str] | None = None) -> None:
    """Raise `AgentError` unless there is everything that the rewards are made of.

    `real` are the signals of the real game where it is learned in.
    """
    outcome = world.config.outcome
    if outcome is None and real is None:
        raise AgentError(f"the world {world.name!r} has no outcome heads: nothing to learn from")
    if players_of(world.card):
        raise AgentError(f"the world {world.name!r} has players: train them by self-play")
    known = real if real is not None or outcome is None else outcome.signals
    unknown = sorted(set(args.signal_weights) - set(known or ()))
    if unknown:
        where = "world" if real is None else "real game"
        raise AgentError(
            f"the {where} {world.name!r} has no signals {unknown}; it has {list(known or ())}"
        )


def full_reward(world: World, args: Rewards) -> float:
    """What a chunk's reward is divided by before it is learned from."""
    low, high = map(float, world.card["reward_range"])
    return high if args.reward == "survival" else max(-low, high) or 1.0


class DreamSlots:
    """Slots of a world: a batched rollout, begun at the opening or in clips of the bank.

    Slot i is seeded with `100_000 * args.seed + i`, and beyond that where `counters` say that
    episodes were begun before.
    """

    def __init__(
        self, world: World, args: "Args", generator: torch.Generator, counters: dict[str, int]
    ) -> None:
        self.args = args
        self.generator = generator
        self.counters = {"episodes": 0} | counters
        self.prompts: list[str] = world.card["prompts"]
        self.horizon: int | None = args.horizon or int(world.card["horizon"])
        self.full_reward = full_reward(world, args)
        first = args.seed * 100_000 + self.counters["episodes"]
        self.rollout = world.rollout(
            args.num_slots,
            seeds=[first + i for i in range(args.num_slots)],
            steps=args.denoising_steps,
            temperature=args.temperature,
            starts=args.starts,
        )
        self.bank = world.bank
        if args.starts == "any":
            self.rollout.prepare_clips()

    def begin(self, slots: Sequence[int]) -> Tensor:
        """Reset slots; a clip of the bank brings its history, so that motion is seen at once."""
        self.counters["episodes"] += len(slots)
        if self.args.starts == "opening":
            return self.rollout.reset(slots=slots).latents[:, None]
        generator = self.generator
        drawn = torch.randint(
            len(self.bank), (len(slots),), generator=generator, device=generator.device
        )
        clips = drawn.tolist()
        self.rollout.reset(slots=slots, clip=clips)
        histories = []
        for clip in clips:
            latents_mZPhw = self.bank.clip(clip)[0].to(generator.device)
            rows = torch.arange(-self.args.history, 0).add(len(latents_mZPhw)).clamp_min(0)
            histories.append(latents_mZPhw[rows])
        return torch.stack(histories)

    def step(self, actions: Sequence[int]) -> Played:
        """Dream one chunk in every slot."""
        chunk = self.rollout.step([self.prompts[action] for action in actions])
        reward_B, continue_B = learned_from(chunk, self.args, self.full_reward)
        return Played(chunk.latents, reward_B, continue_B, chunk.terminated, chunk.reward)

    def close(self) -> None:
        """There is nothing to end."""


class Actor:
    """Plays slots with a network that learns, and notes what it needs for that."""

    def __init__(self, slots: Slots, args: "Args", generator: torch.Generator) -> None:
        self.slots = slots
        self.args = args
        self.generator = generator
        self.stack_BChw = self.begin(range(args.num_slots))
        self.return_B = torch.zeros(args.num_slots)
        self.length_B = torch.zeros(args.num_slots, dtype=torch.int64)
        self.recent: deque[tuple[float, int]] = deque(maxlen=100)
        """return and length in chunks of the last episodes"""

    def begin(self, slots: Sequence[int]) -> Tensor:
        """Begin episodes; return the histories that they begin with, `[n, C, h, w]`."""
        chunks_nmZPhw = self.slots.begin(slots)
        n, m = chunks_nmZPhw.shape[:2]
        seen_nmchw: Tensor = self.see(chunks_nmZPhw.flatten(0, 1)).unflatten(0, (n, m))
        if seen_nmchw.shape[1] == 1:
            return start_history(seen_nmchw[:, 0], self.args.history)
        return seen_nmchw.flatten(1, 2)

    def see(self, latents_BZPhw: Tensor) -> Tensor:
        """Flatten a chunk and blur it with the noise that the agent learns under."""
        chunk_Bchw = flatten_chunk(latents_BZPhw)
        noise_Bchw = torch.empty_like(chunk_Bchw).normal_(generator=self.generator)
        return chunk_Bchw + self.args.observation_noise * noise_Bchw

    @torch.no_grad()
    def collect(self, network: Network) -> Samples:
        """Play `num_steps` chunks in every slot; slots that end begin again at once."""
        rows: list[tuple[Tensor, ...]] = []
        for _ in range(self.args.num_steps):
            stack_BChw = self.stack_BChw
            logp_BA, value_B = network(stack_BChw)
            action_B1 = torch.multinomial(logp_BA.exp(), 1, generator=self.generator)
            played = self.slots.step(action_B1.squeeze(1).tolist())
            self.stack_BChw = extend_history(stack_BChw, self.see(played.latents))
            self.return_B += played.survived.cpu()
            self.length_B += 1
            cut_B = played.ended
            if self.slots.horizon is not None:
                cut_B = cut_B | (self.length_B >= self.slots.horizon).to(cut_B.device)
            final_value_B = torch.zeros_like(value_B)
            if slots := cut_B.nonzero().squeeze(1).tolist():
                final_value_B[slots] = network(self.stack_BChw[slots])[1]
                self.restart(slots)
            logp_B = logp_BA.gather(1, action_B1).squeeze(1)
            rows.append(
                (stack_BChw, action_B1.squeeze(1), logp_B, value_B, final_value_B, played.reward,
                 played.continues, cut_B)
            )  # fmt: skip
        samples = Samples(*(torch.stack(column) for column in zip(*rows, strict=True)))
        following_TB = torch.cat([samples.value[1:], network(self.stack_BChw)[1][None]])
        samples.next_value = torch.where(samples.cut, samples.next_value, following_TB)
        return samples

    def log(self) -> dict[str, float]:
        """Mean return and length of the last episodes, empty before the first has ended."""
        n = len(self.recent)
        if not n:
            return {}
        return {
            "charts/episodic_return": sum(tics for tics, _ in self.recent) / n,
            "charts/episodic_length": sum(length for _, length in self.recent) / n,
        }

    def restart(self, slots: list[int]) -> None:
        """Note the episodes that ended in these slots and begin new ones."""
        lengths = self.length_B[slots].tolist()
        self.recent.extend(zip(self.return_B[slots].tolist(), lengths, strict=True))
        self.return_B[slots] = 0.0
        self.length_B[slots] = 0
        self.stack_BChw[slots] = self.begin(slots)
