"""TorchRL over generated worlds: a single environment, the native batch, and two players.

    python examples/torchrl_env.py --steps 200

Needs the extra `rl`. TorchRL checks each environment with its own `check_env_specs`.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from torchrl.envs import GymWrapper, PettingZooWrapper, check_env_specs

import magi_world
from magi_world.envs import NumericInfos, ParallelNumericInfos

ENV_ID = "magi_world/DoomTakeCover-v0"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Roll the environments out and return what came of each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--world", default="doom-take-cover")
    parser.add_argument("--duel", default=None, help="a world with players; none is not played")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args(arguments)
    common: dict[str, Any] = {
        "world": args.world, "actions": "discrete", "observations": "latent"
    }  # fmt: skip
    environments: dict[str, Any] = {
        "single": GymWrapper(gym.make(ENV_ID, **common), categorical_action_encoding=True),
        "batch": GymWrapper(
            NumericInfos(gym.make_vec(ENV_ID, num_envs=4, autoreset_mode="SAME_STEP", **common)),
            categorical_action_encoding=True,
        ),
    }
    voters = magi_world.envs.parallel_env(
        args.world, arbitration="vote", num_voters=3, actions="discrete", observations="latent"
    )
    environments["voters"] = PettingZooWrapper(
        ParallelNumericInfos(voters), categorical_actions=True
    )
    if args.duel is not None:
        duel = magi_world.envs.parallel_env(args.duel, actions="discrete", observations="latent")
        environments["duel"] = PettingZooWrapper(
            ParallelNumericInfos(duel), categorical_actions=True
        )
    rolled = {}
    for name, env in environments.items():
        check_env_specs(env)
        rolled[name] = env.rollout(args.steps, break_when_any_done=False)
        print(f"{name}: {tuple(rolled[name].batch_size)} chunks")
        env.close()
    return rolled


if __name__ == "__main__":
    main()
