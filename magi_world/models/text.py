"""The text encoder of the embedded worlds: bytes in, caption tokens out.

A T5-style encoder (pre-norm RMS norms, gated GELU, no biases) over UTF-8 bytes. Where T5 adds a
relative position bias to the scores, this one rotates queries and keys, because all attention goes
through one function that takes no bias. It is trained together with its world.

Shape suffixes: Y packed tokens of all prompts, E width, H heads, D head width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magi_world.config import TextConfig
from magi_world.errors import PromptError
from magi_world.kernels.attention import AttnSlices, attention
from magi_world.kernels.rope import rotate

_END = 1
_FIRST_BYTE = 3  # byte b is token b + 3, as in ByT5
_VOCABULARY = 256 + _FIRST_BYTE


def check_prompt(prompt: object, max_bytes: int) -> str:
    """Return the prompt if it can be used.

    Raises:
        PromptError: not a string, empty, unprintable characters, or too many bytes.
    """
    if not isinstance(prompt, str):
        raise PromptError(f"a prompt is text, got {type(prompt).__name__}: {prompt!r}")
    if not prompt:
        raise PromptError("the prompt is empty: at least one character is needed")
    if not prompt.isprintable():
        raise PromptError(f"the prompt {prompt!r} has characters that are not printable")
    try:
        size = len(prompt.encode())
    except UnicodeEncodeError:
        raise PromptError(f"the prompt {prompt!r} cannot be encoded as UTF-8") from None
    if size > max_bytes:
        raise PromptError(f"the prompt has {size} UTF-8 bytes, at most {max_bytes} are allowed")
    return prompt


def tokenize(prompt: str) -> list[int]:
    """Token ids of a prompt: its bytes and the end token."""
    return [byte + _FIRST_BYTE for byte in prompt.encode()] + [_END]


class EncoderLayer(nn.Module):
    """Self-attention and gated MLP, each behind an RMS norm."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.d_kv = config.d_kv
        self.attention_norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.q = nn.Linear(config.d_model, inner, bias=False)
        self.k = nn.Linear(config.d_model, inner, bias=False)
        self.v = nn.Linear(config.d_model, inner, bias=False)
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.mlp_norm = nn.RMSNorm(config.d_model, eps=1e-6)
        self.wi_0 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x_YE: Tensor, rotary: tuple[Tensor, Tensor], mask: AttnSlices) -> Tensor:
        u = self.attention_norm(x_YE)
        q, k, v = (linear(u).unflatten(-1, (-1, self.d_kv)) for linear in (self.q, self.k, self.v))
        out, _ = attention(rotate(q, *rotary), rotate(k, *rotary), v, mask)
        x_YE = x_YE + self.o(out.flatten(1))
        u = self.mlp_norm(x_YE)
        result: Tensor = x_YE + self.wo(F.gelu(self.wi_0(u), approximate="tanh") * self.wi_1(u))
        return result


class TextEncoder(nn.Module):
    """Prompts to caption tokens."""

    frequencies: Tensor

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(_VOCABULARY, config.d_model)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_layers))
        self.final_norm = nn.RMSNorm(config.d_model, eps=1e-6)
        half = config.d_kv // 2
        frequencies = 1000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, list[int]]:
        """Encode prompts.

        Args:
            prompts: checked texts, see :func:`check_prompt`.

        Returns:
            Packed caption tokens `[Y, d_model]`, and the number of tokens of each prompt.
        """
        ids = [tokenize(prompt) for prompt in prompts]
        lengths = [len(tokens) for tokens in ids]
        device = self.shared.weight.device
        flat = torch.tensor([token for tokens in ids for token in tokens], device=device)
        positions = torch.cat([torch.arange(n, device=device) for n in lengths])
        angles = positions[:, None] * self.frequencies
        dtype = self.shared.weight.dtype
        rotary = (angles.cos().to(dtype), angles.sin().to(dtype))
        ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
        mask = AttnSlices.from_list(
            (end - n, end, end - n, end, 0) for n, end in zip(lengths, ends, strict=True)
        )
        x_YE = self.shared(flat)
        for layer in self.layers:
            x_YE = layer(x_YE, rotary, mask)
        encoded: Tensor = self.final_norm(x_YE)
        return encoded, lengths
