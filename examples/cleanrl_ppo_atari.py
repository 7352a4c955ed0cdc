"""PPO in one file after the pattern of CleanRL's `ppo_atari.py`, in a generated world.

    python examples/cleanrl_ppo_atari.py --steps 4096

The environments are wrapped by Gymnasium's own wrappers; nothing here knows that they are dreamt.
"""

import argparse
from collections.abc import Callable, Sequence

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import FrameStackObservation, GrayscaleObservation, RecordEpisodeStatistics
from torch import nn
from torch.distributions import Categorical

import magi_world  # noqa: F401  (registers the environments)
from magi_world.envs import LastFrame

NUM_STEPS, EPOCHS, MINIBATCHES = 32, 4, 4
GAMMA, GAE_LAMBDA, CLIP, ENTROPY, VALUE = 0.99, 0.95, 0.1, 0.01, 0.5


def make_env(world: str) -> Callable[[], gym.Env]:
    def thunk() -> gym.Env:
        env = gym.make("magi_world/DoomTakeCover-v0", world=world, actions="discrete")
        env = RecordEpisodeStatistics(LastFrame(env))
        return FrameStackObservation(GrayscaleObservation(env), 4)

    return thunk


def layer_init(layer: nn.Module, std: float = 2**0.5) -> nn.Module:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    def __init__(self, envs: gym.vector.VectorEnv) -> None:
        super().__init__()
        self.network = nn.Sequential(
            layer_init(nn.Conv2d(4, 32, 8, stride=4)), nn.ReLU(),
            layer_init(nn.Conv2d(32, 64, 4, stride=2)), nn.ReLU(),
            layer_init(nn.Conv2d(64, 64, 3, stride=1)), nn.ReLU(), nn.Flatten(),
            layer_init(nn.Linear(64 * 4 * 4, 512)), nn.ReLU(),
        )  # fmt: skip
        self.actor = layer_init(nn.Linear(512, envs.single_action_space.n), std=0.01)
        self.critic = layer_init(nn.Linear(512, 1), std=1.0)

    def get_value(self, x: torch.Tensor) -> torch.Tensor:
        return self.critic(self.network(x / 255.0))

    def get_action_and_value(
        self, x: torch.Tensor, action: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self.network(x / 255.0)
        probs = Categorical(logits=self.actor(hidden))
        action = probs.sample() if action is None else action
        return action, probs.log_prob(action), probs.entropy(), self.critic(hidden)


def main(arguments: Sequence[str] | None = None) -> Agent:
    """Train and return the agent."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="doom-take-cover")
    parser.add_argument("--steps", type=int, default=4096)
    parser.add_argument("--envs", type=int, default=4)
    args = parser.parse_args(arguments)
    torch.manual_seed(1)
    envs = gym.vector.SyncVectorEnv([make_env(args.world) for _ in range(args.envs)])
    assert isinstance(envs.single_action_space, gym.spaces.Discrete)
    agent = Agent(envs)
    optimizer = torch.optim.Adam(agent.parameters(), lr=2.5e-4, eps=1e-5)
    shape = (NUM_STEPS, args.envs)
    obs = torch.zeros(shape + envs.single_observation_space.shape)
    actions = torch.zeros(shape + envs.single_action_space.shape)
    logprobs, rewards, dones, values = (torch.zeros(shape) for _ in range(4))
    next_obs = torch.as_tensor(envs.reset(seed=1)[0], dtype=torch.float32)
    next_done = torch.zeros(args.envs)
    for iteration in range(max(1, args.steps // (NUM_STEPS * args.envs))):
        for step in range(NUM_STEPS):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                action, logprob, _, value = agent.get_action_and_value(next_obs)
            values[step], actions[step], logprobs[step] = value.flatten(), action, logprob
            raw, reward, terminations, truncations, infos = envs.step(action.numpy())
            rewards[step] = torch.as_tensor(reward)
            next_obs = torch.as_tensor(raw, dtype=torch.float32)
            next_done = torch.as_tensor(np.logical_or(terminations, truncations)).float()
            if "episode" in infos:
                for slot in np.flatnonzero(infos["_episode"]):
                    print(f"episode of {infos['episode']['l'][slot]} chunks, "
                          f"return {infos['episode']['r'][slot]:.1f}")  # fmt: skip
        with torch.no_grad():
            next_value = agent.get_value(next_obs).flatten()
            advantages, last = torch.zeros(shape), torch.zeros(args.envs)
            for t in reversed(range(NUM_STEPS)):
                live = 1.0 - (next_done if t == NUM_STEPS - 1 else dones[t + 1])
                following = next_value if t == NUM_STEPS - 1 else values[t + 1]
                delta = rewards[t] + GAMMA * following * live - values[t]
                advantages[t] = last = delta + GAMMA * GAE_LAMBDA * live * last
            returns = advantages + values
        flat = [part.flatten(0, 1) for part in (obs, actions, logprobs, advantages, returns)]
        for _ in range(EPOCHS):
            for rows in torch.randperm(NUM_STEPS * args.envs).chunk(MINIBATCHES):
                b_obs, b_action, b_logprob, b_advantage, b_return = (part[rows] for part in flat)
                _, new_logprob, entropy, value = agent.get_action_and_value(b_obs, b_action)
                ratio = (new_logprob - b_logprob).exp()
                gain = (b_advantage - b_advantage.mean()) / (b_advantage.std() + 1e-8)
                policy = torch.max(-gain * ratio, -gain * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
                value_loss = 0.5 * (value.flatten() - b_return).square().mean()
                loss = policy - ENTROPY * entropy.mean() + VALUE * value_loss
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
                optimizer.step()
        print(f"iteration {iteration}: loss {loss.item():.3f}")
    envs.close()
    return agent


if __name__ == "__main__":
    main()
