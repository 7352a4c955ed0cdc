"""RLlib's PPO in generated worlds: one agent, or the players of a world through PettingZoo.

    python examples/rllib_ppo.py --iterations 1
    python examples/rllib_ppo.py --iterations 1 --duel pong-duel

ray[rllib] pins gymnasium 1.2.2: `make test-rllib` installs it into an environment of its own.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from pettingzoo.utils import BaseParallelWrapper
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.env.wrappers.pettingzoo_env import ParallelPettingZooEnv
from ray.tune.registry import register_env

import magi_world

ENV_ID = "magi_world/DoomTakeCover-v0"


def make_single(config: dict[str, Any]) -> gym.Env:
    """Latents as one vector, which RLlib's plain networks take."""
    env = gym.make(ENV_ID, world=config["world"], actions="discrete", observations="latent")
    return gym.wrappers.FlattenObservation(env)


class Flat(BaseParallelWrapper):
    """Every player's latents as one vector."""

    def observation_space(self, agent: str) -> gym.spaces.Box:
        return gym.spaces.flatten_space(self.env.observation_space(agent))

    def reset(self, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observations, infos = self.env.reset(seed=seed, options=options)
        return {agent: seen.ravel() for agent, seen in observations.items()}, infos

    def step(self, actions: dict[str, Any]) -> Any:
        observations, *rest = self.env.step(actions)
        return ({agent: seen.ravel() for agent, seen in observations.items()}, *rest)


def make_duel(config: dict[str, Any]) -> ParallelPettingZooEnv:
    """Both players of a world."""
    env = magi_world.envs.parallel_env(
        config["world"], actions="discrete", observations="latent", max_cycles=32
    )
    return ParallelPettingZooEnv(Flat(env))


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Train for some iterations and return their results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="doom-take-cover")
    parser.add_argument("--duel", default=None, help="a world with players, played by all of them")
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--batch", type=int, default=256, help="chunks of an iteration")
    args = parser.parse_args(arguments)
    register_env("single", make_single)
    register_env("duel", make_duel)
    name, world = ("single", args.world) if args.duel is None else ("duel", args.duel)
    config = (
        PPOConfig()
        .environment(name, env_config={"world": world})
        .env_runners(num_env_runners=0)
        .training(train_batch_size=args.batch, minibatch_size=args.batch // 2, num_epochs=1)
    )
    if args.duel is not None:
        config = config.multi_agent(
            policies={"shared"}, policy_mapping_fn=lambda agent, episode, **kwargs: "shared"
        )
    algorithm = config.build_algo()
    results = [algorithm.train() for _ in range(args.iterations)]
    algorithm.stop()
    for result in results:
        print(f"{result['env_runners']['num_env_steps_sampled']} chunks sampled")
    return results


if __name__ == "__main__":
    main()
