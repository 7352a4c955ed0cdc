"""The agent of Ha and Schmidhuber's size: a linear map of about a thousand parameters, by CMA-ES.

It reads the average of each latent channel over the cells of a coarse grid, of the last few chunks,
and takes the action with the highest score. It learns in the dream alone: in every generation a
population of such maps plays side by side, all of them in the same dreams, and the next one is
drawn around those that survived longest. `agents/linear_training.py` is the training.

Shape suffixes: B rows, A actions, D features (chunks in view times features of one chunk, d), Z
latent channels, P latent frames of a chunk, h and w the latent grid.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from magi_world.agents.files import WEIGHTS, check_fits, read_description, write_description
from magi_world.checkpoints.tensors import load_module, write_tensors
from magi_world.errors import AgentError, NotReset

if TYPE_CHECKING:
    from magi_world.world import World


def features(latents_BZPhw: Tensor, pool: Sequence[int]) -> Tensor:
    """Average the latents over a grid of `pool` (rows, columns) cells: `[B, d]`."""
    rows, columns = pool
    cells_Bdhw = nn.functional.adaptive_avg_pool2d(latents_BZPhw.flatten(1, 2), (rows, columns))
    return cells_Bdhw.flatten(1)


def num_features(latent_shape: Sequence[int], history: int, pool: Sequence[int]) -> int:
    """D: how many numbers the map reads."""
    z, p, _, _ = latent_shape
    return history * z * p * pool[0] * pool[1]


class History:
    """The features of the last chunks of n rows, `[n, D]`; at first the first one, repeated."""

    def __init__(self, history: int, pool: Sequence[int]) -> None:
        self.history = history
        self.pool = pool
        self._chunks: list[Tensor] = []

    def add(self, latents_BZPhw: Tensor) -> Tensor:
        """Append the newest chunk and return what is in view, the oldest first."""
        new_Bd = features(latents_BZPhw, self.pool)
        kept = self._chunks[1:] if self._chunks else [new_Bd] * (self.history - 1)
        self._chunks = [*kept, new_Bd]
        return torch.cat(self._chunks, dim=1)


class LinearAgent:
    """A linear map from pooled latents to the scores of the prompts; the highest one is played.

    `description` is what `agent.json` holds.
    """

    observations = "latent"
    policy = "greedy"

    def __init__(self, weights: nn.Linear, description: dict[str, Any]) -> None:
        self.weights = weights.eval().requires_grad_(False)
        self.description = description
        self._rows = 0
        self._history: History | None = None

    def reset(self, n: int, seed: int | None = None) -> None:
        """Begin n episodes; nothing is drawn, so there is nothing to seed."""
        self._rows = n
        self._history = History(self.description["history"], self.description["pool"])

    @torch.inference_mode()
    def act(self, obs: npt.NDArray[Any] | Tensor) -> npt.NDArray[np.int64]:
        """Choose a prompt index for each row of latents `[n, Z, P, h, w]`.

        Raises:
            NotReset: `reset` was never called.
            AgentError: another number of rows than `reset` was given, or latents of another shape.
        """
        if self._history is None:
            raise NotReset("the agent was not reset: call reset(n) before act")
        shape = (self._rows, *self.description["latent_shape"])
        if tuple(obs.shape) != shape:
            raise AgentError(f"latents of shape {tuple(obs.shape)}, expected {shape}")
        device = self.weights.weight.device
        seen_BD = self._history.add(torch.as_tensor(obs, dtype=torch.float32, device=device))
        return np.asarray(self.weights(seen_BD).argmax(-1).cpu().numpy(), dtype=np.int64)

    def check_fits(self, world: "World") -> None:
        """Raise `AgentError` unless the agent was trained on the world's prompts and latents."""
        check_fits(self.description, world)

    def save(self, folder: str | Path) -> None:
        """Write `agent.safetensors` (float32) and `agent.json`; each appears whole or not."""
        folder = Path(folder)
        write_tensors(self.weights.state_dict(), folder / WEIGHTS, {})
        write_description(self.description, folder)

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | str = "cpu") -> Self:
        """Read an agent that `save` wrote.

        Raises:
            AgentError: a file is missing, is not one of an agent, or its weights do not fit.
        """
        folder = Path(folder)
        description = read_description(folder)
        try:
            weights = build_map(description)
            load_module(weights, folder / WEIGHTS)
            return cls(weights.to(device), description)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AgentError(f"{folder} does not hold a linear agent: {error}") from error


def build_map(description: dict[str, Any]) -> nn.Linear:
    """Build the map that `agent.json` describes, its weights not yet set."""
    inputs = num_features(description["latent_shape"], description["history"], description["pool"])
    with torch.device("meta"):  # no weights are drawn, so nobody's random state moves
        weights = nn.Linear(inputs, len(description["prompts"]))
    return weights.to_empty(device="cpu")
