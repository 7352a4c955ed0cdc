"""Reward and termination heads on the hidden states of the clean pass.

Learned queries pool the tokens of a chunk; an MLP reads the pooled vectors. There is no second
network and no second forward: the clean pass has seen the chunk, its prompt and its history.

Shape suffixes: G chunks, n tokens, E hidden width, Q queries, D width of the heads.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magi_world.config import OutcomeConfig
from magi_world.kernels.attention import AttnSlices, attention


class Outcome(NamedTuple):
    """What the heads say about G chunks."""

    reward: Tensor
    """mean reward `[G]`, of a world with players `[G, players]`; not clipped"""
    termination_logit: Tensor
    """`[G]`"""
    signals: Tensor
    """the extra quantities `[G, signals]`"""


class OutcomeHead(nn.Module):
    """Pools the hidden states `[G, n, E]` of clean chunks and predicts their outcome."""

    def __init__(self, config: OutcomeConfig, hidden_size: int) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.num_heads = config.num_heads
        self.queries = nn.Parameter(torch.randn(config.num_queries, size) * 0.5)
        self.kv = nn.Linear(hidden_size, 2 * size)
        self.mlp_in = nn.Linear(config.num_queries * size, size)
        self.mlp_out = nn.Linear(size, config.num_rewards + 1 + len(config.signals))
        nn.init.zeros_(self.mlp_out.bias)

    def forward(self, hidden_GnE: Tensor) -> Outcome:
        """Predict reward, termination and signals of every chunk."""
        G, n, _ = hidden_GnE.shape
        hidden = hidden_GnE.to(self.kv.weight.dtype)
        heads = (self.num_heads, -1)
        k, v = (part.flatten(0, 1).unflatten(-1, heads) for part in self.kv(hidden).chunk(2, -1))
        q = self.queries.repeat(G, 1).unflatten(-1, heads)  # [G * Q, heads, D / heads]
        Q = self.config.num_queries
        pooled, _ = attention(q, k, v, AttnSlices.repeated(G, Q, n))
        features = F.gelu(self.mlp_in(pooled.reshape(G, -1)))
        out = self.mlp_out(features).float()
        rewards = self.config.num_rewards
        reward = out[:, :rewards] if self.config.rewards else out[:, 0]
        return Outcome(reward, out[:, rewards], out[:, rewards + 1 :])
