"""Gymnasium's own tools over a generated world: videos, statistics, stacks, limits, processes.

    python examples/gymnasium_wrappers.py --steps 200 --out runs/videos

Needs the extra `video`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
from gymnasium.vector import AsyncVectorEnv
from gymnasium.wrappers import (
    FrameStackObservation,
    RecordEpisodeStatistics,
    RecordVideo,
    TimeLimit,
)

import magi_world  # noqa: F401  (registers the environments)
from magi_world.envs import FrameByFrame, LastFrame

ENV_ID = "magi_world/DoomTakeCover-v0"


class Make:
    """Makes one environment; it can be sent to another process."""

    def __init__(self, world: str) -> None:
        self.world = world

    def __call__(self) -> gym.Env:
        return LastFrame(gym.make(ENV_ID, world=self.world, actions="discrete"))


def main(arguments: Sequence[str] | None = None) -> list[dict[str, float]]:
    """Play, film, and return the statistics of the episodes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="doom-take-cover")
    parser.add_argument("--steps", type=int, default=200, help="frames")
    parser.add_argument("--limit", type=int, default=100, help="frames of an episode")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/videos"))
    args = parser.parse_args(arguments)

    env: gym.Env = gym.make(ENV_ID, world=args.world, actions="discrete", render_mode="rgb_array")
    env = TimeLimit(FrameByFrame(env), args.limit)  # four frames a chunk, each action held
    env = RecordVideo(env, str(args.out), episode_trigger=lambda episode: True)
    env = RecordEpisodeStatistics(FrameStackObservation(env, 4))
    env.reset(seed=0)
    episodes = []
    for _ in range(args.steps):
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            episodes.append({key: float(info["episode"][key]) for key in ("r", "l")})
            env.reset()
    env.close()

    envs = AsyncVectorEnv([Make(args.world)] * args.processes, context="spawn")
    envs.reset(seed=0)
    for _ in range(args.steps // args.processes):
        envs.step(envs.action_space.sample())
    envs.close()
    print(f"{len(episodes)} episodes, videos in {args.out}")
    return episodes


if __name__ == "__main__":
    main()
