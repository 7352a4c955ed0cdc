"""The side of a PPO training that plays: a batched rollout, its histories and running episodes.

Shape suffixes as in `agents/ppo.py`: T chunks of one update, B slots, n slots named in a call,
A actions, C channels of a stack, Z latent channels, P latent frames, h and w the latent grid, m
chunks of a clip.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from magi_world.agents.ppo_agent import Network, extend_history, flatten_chunk, start_history
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


class Actor:
    """The side of the training that plays: a rollout, its histories and its running episodes."""

    def __init__(self, world: World, args: "Args", generator: torch.Generator) -> None:
        self.args = args
        self.generator = generator
        self.prompts: list[str] = world.card["prompts"]
        self.horizon = args.horizon or int(world.card["horizon"])
        self.full_reward = float(world.card["reward_range"][1])
        self.rollout = world.rollout(
            args.num_slots,
            seeds=[args.seed * 100_000 + i for i in range(args.num_slots)],
            steps=args.denoising_steps,
            temperature=args.temperature,
            starts=args.starts,
        )
        self.bank = world.bank
        self.stack_BChw = self.begin(range(args.num_slots))
        self.return_B = torch.zeros(args.num_slots)
        self.recent: deque[tuple[float, int]] = deque(maxlen=100)
        """return and length in chunks of the last episodes"""

    def begin(self, slots: Sequence[int]) -> Tensor:
        """Reset slots; return the histories that they begin with, `[n, C, h, w]`.

        A clip of the bank brings its own history, so that motion is seen from the first chunk on.
        """
        history = self.args.history
        if self.args.starts == "opening":
            return start_history(self.see(self.rollout.reset(slots=slots).latents), history)
        generator = self.generator
        drawn = torch.randint(
            len(self.bank), (len(slots),), generator=generator, device=generator.device
        )
        clips = drawn.tolist()
        self.rollout.reset(slots=slots, clip=clips)
        stacks = []
        for clip in clips:
            latents_mZPhw = self.bank.clip(clip)[0].to(generator.device)
            rows = torch.arange(-history, 0).add(len(latents_mZPhw)).clamp_min(0)
            stacks.append(self.see(latents_mZPhw[rows]).flatten(0, 1))
        return torch.stack(stacks)

    def see(self, latents_BZPhw: Tensor) -> Tensor:
        """Flatten a chunk and blur it with the noise that the agent learns under."""
        chunk_Bchw = flatten_chunk(latents_BZPhw)
        noise_Bchw = torch.empty_like(chunk_Bchw).normal_(generator=self.generator)
        return chunk_Bchw + self.args.observation_noise * noise_Bchw

    def reward(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Return the reward that is learned from and the share that goes on, float32 `[B]` each."""
        ended_B = chunk.terminated.float()
        if self.args.expected_termination:
            ended_B = chunk.termination_probability
        reward_B = -ended_B if self.args.reward == "penalty" else chunk.reward / self.full_reward
        for name, weight in self.args.signal_weights.items():
            reward_B = reward_B + weight * chunk.signals[name]
        return reward_B, 1.0 - ended_B

    @torch.no_grad()
    def collect(self, network: Network) -> Samples:
        """Play `num_steps` chunks in every slot; slots that end begin again at once."""
        rows: list[tuple[Tensor, ...]] = []
        for _ in range(self.args.num_steps):
            stack_BChw = self.stack_BChw
            logp_BA, value_B = network(stack_BChw)
            action_B1 = torch.multinomial(logp_BA.exp(), 1, generator=self.generator)
            chunk = self.rollout.step([self.prompts[a] for a in action_B1.squeeze(1).tolist()])
            cut_B = chunk.terminated | (self.rollout.chunk_index >= self.horizon).to(logp_BA.device)
            self.stack_BChw = extend_history(stack_BChw, self.see(chunk.latents))
            self.return_B += chunk.reward.cpu()
            final_value_B = torch.zeros_like(value_B)
            if slots := cut_B.nonzero().squeeze(1).tolist():
                final_value_B[slots] = network(self.stack_BChw[slots])[1]
                self.restart(slots)
            logp_B = logp_BA.gather(1, action_B1).squeeze(1)
            reward_B, continue_B = self.reward(chunk)
            rows.append(
                (stack_BChw, action_B1.squeeze(1), logp_B, value_B, final_value_B, reward_B,
                 continue_B, cut_B)
            )  # fmt: skip
        samples = Samples(*(torch.stack(column) for column in zip(*rows, strict=True)))
        following_TB = torch.cat([samples.value[1:], network(self.stack_BChw)[1][None]])
        samples.next_value = torch.where(samples.cut, samples.next_value, following_TB)
        return samples

    def restart(self, slots: list[int]) -> None:
        """Note the episodes that ended in these slots and begin new ones."""
        lengths = self.rollout.chunk_index[slots].tolist()
        self.recent.extend(zip(self.return_B[slots].tolist(), lengths, strict=True))
        self.return_B[slots] = 0.0
        self.stack_BChw[slots] = self.begin(slots)
