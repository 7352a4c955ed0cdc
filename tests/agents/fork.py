"""A world of a few lines and its real game: a wall with one open side, seen in the latents."""

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from magi_world.agents.ppo_agent import PPOAgent, build_network
from magi_world.checkpoints.world_format import Bank

PROMPTS = ["stand still", "strafe left", "strafe right"]
SHAPE = (16, 1, 4, 4)
SMALL: dict[str, Any] = {
    "total_steps": 512, "num_slots": 8, "num_steps": 16, "history": 2, "channels": (8, 8),
    "hidden": 16, "minibatches": 2, "starts": "opening", "horizon": None,
}  # fmt: skip


class Fork:
    """A rollout with a wall ahead: one half of the latents glows, and only its side is open.

    The wrong side, and standing still, end the episode with probability `danger`.
    """

    def __init__(self, slots: int, seeds: Sequence[int], danger: float) -> None:
        self.danger = danger
        self.generators = [np.random.default_rng(seed) for seed in seeds]
        self.chunk_index = torch.zeros(slots, dtype=torch.int64)
        self.open_B = torch.zeros(slots, dtype=torch.int64)
        self.resets: list[list[int]] = []
        self.clips: list[int] = []

    def _look(self, slots: Sequence[int]) -> Tensor:
        latents = torch.zeros(len(slots), *SHAPE)
        for row, slot in enumerate(slots):
            self.open_B[slot] = int(self.generators[slot].integers(2)) + 1
            half = slice(0, 2) if self.open_B[slot] == 1 else slice(2, 4)
            latents[row, 0, 0, :, half] = 2.0
        return latents

    def prepare_clips(self) -> None:
        """Nothing is replayed here."""

    def reset(
        self,
        slots: Sequence[int] | None = None,
        clip: Sequence[int] | None = None,
        seeds: Iterable[int] | None = None,
    ) -> SimpleNamespace:
        slots = range(len(self.open_B)) if slots is None else slots
        for slot, seed in zip(slots, seeds or (), strict=False):
            self.generators[slot] = np.random.default_rng(seed)
        self.resets.append(list(slots))
        self.clips += clip or []
        self.chunk_index[list(slots)] = 0
        return SimpleNamespace(latents=self._look(slots))

    def step(self, prompts: Sequence[str]) -> SimpleNamespace:
        action_B = torch.tensor([PROMPTS.index(prompt) for prompt in prompts])
        probability_B = self.danger * (action_B != self.open_B).float()
        draw_B = torch.tensor([generator.random() for generator in self.generators])
        self.chunk_index += 1
        return SimpleNamespace(
            latents=self._look(range(len(prompts))),
            reward=torch.full((len(prompts),), 4.0),
            termination_probability=probability_B,
            terminated=draw_B < probability_B,
            signals={"damage": 100 * probability_B},
        )


class ForkWorld:
    """What `train` needs of a world, around `Fork`."""

    name = "fork"
    device = torch.device("cpu")
    folder = None

    def __init__(self, *, danger: float = 0.5, horizon: int = 20, outcome: bool = True) -> None:
        self.card = {"prompts": PROMPTS, "horizon": horizon, "reward_range": [0, 4], "name": "fork"}
        heads = SimpleNamespace(signals=("damage",)) if outcome else None
        self.config = SimpleNamespace(latent_shape=SHAPE, outcome=heads)
        # clips of one and of three chunks; every chunk holds the number of its clip and its place
        lengths = (1, 3, 3)
        places = [torch.arange(float(n)).view(n, 1, 1, 1, 1) for n in lengths]
        latents = tuple(10.0 * i + p.expand(-1, *SHAPE) for i, p in enumerate(places))
        self.bank = Bank(latents, tuple(("stand still",) * n for n in lengths), 1)
        self.danger = danger
        self.asked: dict[str, Any] = {}
        self.seeds: list[int] = []

    def rollout(self, slots: int, *, seeds: Sequence[int] | None = None, **asked: Any) -> Fork:
        self.asked = asked
        self.seeds = list(range(slots) if seeds is None else seeds)
        return Fork(slots, self.seeds, self.danger)

    def encode(self, frames: npt.NDArray[np.uint8]) -> Tensor:
        """Real chunks uint8 `[n, 4, 4, 4, 3]` to latents: the first frame's red in channel 0."""
        latents = torch.zeros(len(frames), *SHAPE)
        latents[:, 0, 0] = torch.from_numpy(frames[:, 0, :, :, 0].astype(np.float32))
        return latents


class ForkGame:
    """The real game of `ForkWorld`: every wrong step costs 40 of 100 health, the third kills.

    A chunk has four tics, the fatal one two; the game ends by itself after `limit` chunks.
    """

    name = "fork"
    prompts = PROMPTS
    chunk_frames = 4
    frame_shape = (4, 4, 3)
    fps = 35
    limit = 12
    full_health = 100.0
    seeds: list[int] = []
    running = 0

    def __init__(self) -> None:
        ForkGame.running += 1

    def reset(self, seed: int) -> SimpleNamespace:
        ForkGame.seeds.append(seed)
        self.generator = np.random.default_rng(seed)
        self.health, self.chunks = self.full_health, 0
        return self._chunk()

    def step(self, action: int) -> SimpleNamespace:
        self.chunks += 1
        if action != self.open:
            self.health = max(self.health - 40.0, 0.0)  # NaN stays
        return self._chunk()

    def close(self) -> None:
        ForkGame.running -= 1

    def _chunk(self) -> SimpleNamespace:
        self.open = int(self.generator.integers(2)) + 1
        frames = np.zeros((4, 4, 4, 3), np.uint8)
        frames[:, :, slice(0, 2) if self.open == 1 else slice(2, 4), 0] = 2
        dead = self.health == 0.0
        tics = 2 if dead else 4
        return SimpleNamespace(
            frames=frames, valid_frames=tics, reward=float(tics), terminated=dead,
            truncated=not dead and self.chunks >= self.limit, health=self.health,
        )  # fmt: skip


def fork_world(**settings: Any) -> Any:
    return ForkWorld(**settings)


def fork_game() -> Any:
    return ForkGame()


def new_agent(*, greedy: bool = True) -> PPOAgent:
    """An agent with drawn weights."""
    description = {
        "kind": "ppo", "world": "fork", "prompts": PROMPTS, "latent_shape": list(SHAPE),
        "history": 2, "channels": [8, 8], "hidden": 16, "greedy": greedy,
    }  # fmt: skip
    network = build_network(description).initialise(torch.Generator().manual_seed(3))
    torch.nn.init.normal_(
        network.policy.weight, std=0.5, generator=torch.Generator().manual_seed(4)
    )
    return PPOAgent(network, description)


def some_latents(n: int, seed: int = 0) -> Tensor:
    """Drawn chunks of the fork's shape."""
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))
