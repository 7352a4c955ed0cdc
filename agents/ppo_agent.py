"""The agent that PPO trains: a small network on the latents of the last chunks.

The last `history` chunks of an episode are its whole memory: they are stacked along the channels,
and nothing is ever decoded. `agents/ppo.py` is the training.

Shape suffixes: B rows, N samples, A actions, D features, C channels of a stack (chunks in view
times channels of one chunk, c), Z latent channels, P latent frames of a chunk, h and w the latent
grid.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from magi_world.agents.files import WEIGHTS, check_fits, read_description, write_description
from magi_world.checkpoints.tensors import as_bfloat16, load_module, write_tensors
from magi_world.errors import AgentError, NotReset

if TYPE_CHECKING:
    from magi_world.world import World


class Network(nn.Module):
    """Policy and value on a stack of latents.

    Args:
        shape: `(Z, P, h, w)` of one chunk of latents.
        num_actions: A, the prompts to choose from.
        history: chunks in the stack.
        channels: widths of the two convolutions, the second of which halves the grid.
        hidden: width of the layer that policy and value share.
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_actions: int,
        *,
        history: int,
        channels: Sequence[int],
        hidden: int,
    ) -> None:
        super().__init__()
        z, p, h, w = shape
        first, second = channels
        self.body = nn.Sequential(
            nn.Conv2d(history * z * p, first, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(second * ((h + 1) // 2) * ((w + 1) // 2), hidden),
            nn.ReLU(),
        )
        self.policy = nn.Linear(hidden, num_actions)
        self.value = nn.Linear(hidden, 1)

    def initialise(self, generator: torch.Generator) -> Self:
        """Draw orthogonal weights: a nearly uniform policy and a value of nearly 0."""
        gains: dict[nn.Module, float] = {self.policy: 0.01, self.value: 0.1}
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                gain = gains.get(layer, 2**0.5)
                nn.init.orthogonal_(layer.weight, gain, generator=generator)
                nn.init.zeros_(layer.get_parameter("bias"))
        return self

    def forward(self, stack_NChw: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities `[N, A]` of the actions and the values `[N]`."""
        hidden_ND = self.body(stack_NChw)
        return self.policy(hidden_ND).log_softmax(-1), self.value(hidden_ND).squeeze(-1)


def build_network(description: Mapping[str, Any]) -> Network:
    """Build the network that `agent.json` describes, its weights not yet set."""
    with torch.device("meta"):  # no weights are drawn, so nobody's random state moves
        network = Network(
            description["latent_shape"],
            len(description["prompts"]),
            history=description["history"],
            channels=description["channels"],
            hidden=description["hidden"],
        )
    return network.to_empty(device="cpu")


def flatten_chunk(latents_BZPhw: Tensor) -> Tensor:
    """Lay the latent frames of a chunk behind one another, oldest first: `[B, P * Z, h, w]`."""
    return latents_BZPhw.transpose(1, 2).flatten(1, 2)


def start_history(chunk_Bchw: Tensor, history: int) -> Tensor:
    """Fill a history with its first chunk, as if it had always looked like that: `[B, C, h, w]`."""
    return chunk_Bchw.repeat(1, history, 1, 1)


def extend_history(stack_BChw: Tensor, chunk_Bchw: Tensor) -> Tensor:
    """Append the newest chunk to a history and drop the oldest: `[B, C, h, w]`."""
    return torch.cat([stack_BChw[:, chunk_Bchw.shape[1] :], chunk_Bchw], dim=1)


class PPOAgent:
    """A trained policy: reads latents, answers with prompt indices, remembers its last chunks.

    `description` is what `agent.json` holds; `greedy` overrides its choice of playing the most
    probable action or sampling. Where it has a `margin`, a greedy agent keeps the action that it
    took last unless another one's log-probability is higher by more than that.
    """

    observations = "latent"

    def __init__(
        self, network: Network, description: dict[str, Any], *, greedy: bool | None = None
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.description = description
        self.greedy = bool(description["greedy"]) if greedy is None else greedy
        self.margin = float(description.get("margin", 0.0))
        self._stack_BChw: Tensor | None = None
        self._last_B: npt.NDArray[np.int64] | None = None
        self._started = False
        self._generators: list[np.random.Generator] = []

    @property
    def policy(self) -> str:
        """ "greedy" or "sampled", as tables print it."""
        return "greedy" if self.greedy else "sampled"

    def reset(self, n: int, seed: int | None = None) -> None:
        """Begin n episodes; row i draws its actions from a generator seeded with `seed + i`."""
        seeds = [None] * n if seed is None else [seed + i for i in range(n)]
        self._generators = [np.random.default_rng(s) for s in seeds]
        self._stack_BChw = self._last_B = None
        self._started = True

    @torch.inference_mode()
    def act(self, obs: npt.NDArray[Any] | Tensor) -> npt.NDArray[np.int64]:
        """Choose a prompt index for each row of latents `[n, Z, P, h, w]`.

        Raises:
            NotReset: `reset` was never called.
            AgentError: another number of rows than `reset` was given, or latents of another shape.
        """
        if not self._started:
            raise NotReset("the agent was not reset: call reset(n) before act")
        shape = (len(self._generators), *self.description["latent_shape"])
        if tuple(obs.shape) != shape:
            raise AgentError(f"latents of shape {tuple(obs.shape)}, expected {shape}")
        device = self.network.value.weight.device
        chunk_Bchw = flatten_chunk(torch.as_tensor(obs, dtype=torch.float32, device=device))
        if self._stack_BChw is None:
            self._stack_BChw = start_history(chunk_Bchw, self.description["history"])
        else:
            self._stack_BChw = extend_history(self._stack_BChw, chunk_Bchw)
        logp_BA = self.network(self._stack_BChw)[0].cpu().double().numpy()
        if self.greedy:
            if self._last_B is not None:
                logp_BA[np.arange(len(logp_BA)), self._last_B] += self.margin
            self._last_B = np.asarray(logp_BA.argmax(-1), dtype=np.int64)
            return self._last_B.copy()
        noise_BA = np.stack([g.gumbel(size=logp_BA.shape[1]) for g in self._generators])
        return np.asarray((logp_BA + noise_BA).argmax(-1), dtype=np.int64)

    def check_fits(self, world: "World") -> None:
        """Raise `AgentError` unless the agent was trained on the world's prompts and latents."""
        check_fits(self.description, world)

    def save(self, folder: str | Path) -> None:
        """Write `agent.safetensors` (bfloat16) and `agent.json`; each appears whole or not."""
        folder = Path(folder)
        write_tensors(as_bfloat16(self.network), folder / WEIGHTS, {})
        write_description(self.description, folder)

    @classmethod
    def load(
        cls, folder: str | Path, *, device: torch.device | str = "cpu", greedy: bool | None = None
    ) -> Self:
        """Read an agent that `save` wrote.

        Raises:
            AgentError: a file is missing, is not one of an agent, or its weights do not fit.
        """
        folder = Path(folder)
        description = read_description(folder)
        try:
            network = build_network(description)
            load_module(network, folder / WEIGHTS)
            return cls(network.to(device), description, greedy=greedy)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AgentError(f"{folder} does not hold a PPO agent: {error}") from error
