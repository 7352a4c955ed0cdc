"""The state of a PPO training: networks, optimizer, generator and counters, saved and resumed."""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from magi_world.agents.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from magi_world.agents.ppo_agent import PPOAgent, build_network
from magi_world.checkpoints.tensors import load_tensors

if TYPE_CHECKING:
    from magi_world.agents.ppo import Args


class Training:
    """Everything of a training that a checkpoint keeps.

    `description` is what `agent.json` will hold, but for "args" and "trained". The networks learn
    on `device`.
    """

    def __init__(self, description: dict[str, Any], args: "Args", device: torch.device) -> None:
        self.args = args
        self.description = description | {"args": asdict(args)}
        seeded = torch.Generator().manual_seed(args.seed)
        self.network = build_network(description).initialise(seeded).to(device)
        self.average = copy.deepcopy(self.network)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=args.learning_rate, eps=1e-5
        )
        self.generator = torch.Generator(device).manual_seed(args.seed)
        self.steps = 0
        self.updates = 0
        self.seconds = 0.0
        """spent in all runs together"""
        self.counters: dict[str, int] = {}
        """see `Slots.counters`"""

    @property
    def trained(self) -> dict[str, Any]:
        """What `agent.json` says about the training."""
        numbers = {"steps": self.steps, "updates": self.updates, "seconds": round(self.seconds, 1)}
        return numbers | self.counters

    @property
    def progress(self) -> float:
        """The share of the budget that is used, 1 at the end."""
        args = self.args
        return max(
            self.steps / args.total_steps if args.total_steps else 0.0,
            self.seconds / (60 * args.minutes) if args.minutes else 0.0,
        )

    def save(self, out: Path) -> None:
        """Write the agent with the averaged weights, and the checkpoint; each whole or not."""
        agent = PPOAgent(copy.deepcopy(self.average), self.description | {"trained": self.trained})
        agent.save(out)
        tensors = {"generator": self.generator.get_state()}
        for part, module in (("network", self.network), ("average", self.average)):
            for name, tensor in module.state_dict().items():
                tensors[f"{part}.{name}"] = tensor
        for index, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        write_checkpoint(
            out, tensors, self.description, steps=self.steps, updates=self.updates,
            seconds=self.seconds, counters=self.counters,
        )  # fmt: skip

    def resume(self, out: Path) -> None:
        """Go on from the checkpoint in a folder; see `read_checkpoint` for what it refuses."""
        tensors, about = read_checkpoint(out, self.description)

        def part(name: str) -> dict[str, Tensor]:
            prefix = f"{name}."
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        load_tensors(self.network, part("network"), f"{out / CHECKPOINT}")
        load_tensors(self.average, part("average"), f"{out / CHECKPOINT}")
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer").items():
            index, name = key.split(".")
            states.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.steps, self.updates = about["steps"], about["updates"]
        self.seconds, self.counters = about["seconds"], about["counters"]
