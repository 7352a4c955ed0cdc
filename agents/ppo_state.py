"""The state of a training of a network: weights, optimizer, generator, counters; saved, resumed."""

import copy
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from magi_world.agents.checkpoint import CHECKPOINT, read_checkpoint, write_checkpoint
from magi_world.agents.ppo_agent import PPOAgent, build_network
from magi_world.checkpoints.tensors import load_tensors

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from magi_world.agents.ppo import Args  # noqa: F401, named in a string

    class Settings(DataclassInstance, Protocol):
        """What the settings of every such training have."""

        @property
        def seed(self) -> int: ...
        @property
        def learning_rate(self) -> float: ...
        @property
        def minutes(self) -> float | None: ...


AnyArgs = TypeVar("AnyArgs", bound="Settings")


class NetworkTraining(ABC, Generic[AnyArgs]):
    """Everything of a training that a checkpoint keeps.

    `description` is what `agent.json` will hold, but for "args" and "trained". The networks learn
    on `device`; `parts` names those that a checkpoint keeps.
    """

    def __init__(
        self,
        description: dict[str, Any],
        args: AnyArgs,
        device: torch.device,
        *,
        weight_decay: float = 0.0,
    ) -> None:
        self.args = args
        self.description = description | {"args": asdict(args)}
        seeded = torch.Generator().manual_seed(args.seed)
        self.network = build_network(description).initialise(seeded).to(device)
        self.average = copy.deepcopy(self.network)
        self.parts: dict[str, nn.Module] = {"network": self.network, "average": self.average}
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=args.learning_rate, eps=1e-5, weight_decay=weight_decay
        )  # without decay it is Adam
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
        minutes = self.args.minutes
        return max(self.counted, self.seconds / (60 * minutes) if minutes else 0.0)

    @property
    @abstractmethod
    def counted(self) -> float:
        """The share of the budget, other than time, that is used."""

    def agent(self) -> PPOAgent:
        """The agent with the averaged weights, as it is saved."""
        return PPOAgent(copy.deepcopy(self.average), self.description | {"trained": self.trained})

    def save(self, out: Path) -> None:
        """Write the agent with the averaged weights, and the checkpoint; each whole or not."""
        self.agent().save(out)
        tensors = {"generator": self.generator.get_state()}
        for part, module in self.parts.items():
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

        for name, module in self.parts.items():
            load_tensors(module, part(name), f"{out / CHECKPOINT}")
        states: dict[int, dict[str, Tensor]] = {}
        for key, value in part("optimizer").items():
            index, name = key.split(".")
            states.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})
        self.generator.set_state(tensors["generator"])
        self.steps, self.updates = about["steps"], about["updates"]
        self.seconds, self.counters = about["seconds"], about["counters"]


class Training(NetworkTraining["Args"]):
    """A training by PPO: its budget are chunks played."""

    @property
    def counted(self) -> float:
        """The share of the chunks that is played."""
        return self.steps / self.args.total_steps if self.args.total_steps else 0.0
