"""stable-baselines3's PPO in a generated world: one environment, or several.

    python examples/sb3_ppo.py --steps 4096
    python examples/sb3_ppo.py --steps 4096 --envs 4

Needs the extra `rl`.
"""

import argparse
from collections.abc import Sequence

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecTransposeImage

import magi_world  # noqa: F401  (registers the environments)
from magi_world.envs import LastFrame


def main(arguments: Sequence[str] | None = None) -> PPO:
    """Train and return the model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="doom-take-cover")
    parser.add_argument("--steps", type=int, default=4096)
    parser.add_argument("--envs", type=int, default=1)
    args = parser.parse_args(arguments)

    def make() -> gym.Env:
        env = gym.make("magi_world/DoomTakeCover-v0", world=args.world, actions="discrete")
        return LastFrame(env)

    if args.envs == 1:
        env = make()
    else:
        env = VecTransposeImage(VecFrameStack(DummyVecEnv([make] * args.envs), n_stack=4))
    model = PPO("CnnPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=0, device="cpu")
    model.learn(args.steps)
    print(f"{model.num_timesteps} chunks played")
    return model


if __name__ == "__main__":
    main()
