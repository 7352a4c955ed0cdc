"""A MAGI-1 world with random weights and a text encoder that needs no files."""

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from magi_world.errors import PromptError
from magi_world.sampling.generate import GenerateSettings, Generation, generate
from magi_world.text.special_tokens import TokenOptions
from magi_world.world import World

CHANNELS = 24
WIDTH = 2
"""latent frames of a chunk"""
F = 4 * WIDTH
"""frames of a chunk"""
SIZE = (16, WIDTH, 4, 6)
"""latents of a chunk"""


class StubText:
    """Embeds a prompt as noise that its text seeds, three rows long, one more a special token."""

    def __init__(self, options: TokenOptions) -> None:
        self.options = options
        self.embedded: list[tuple[str, int | None]] = []

    def check(self, prompt: object, compat: str | None = None) -> None:
        if not isinstance(prompt, str) or not (prompt or compat):
            raise PromptError(f"the prompt {prompt!r} cannot be used")

    def embed(
        self,
        prompts: Sequence[str],
        *,
        remaining: Sequence[int | None] | None = None,
        compat: str | None = None,
    ) -> list[Tensor]:
        left = [None] * len(prompts) if remaining is None else remaining
        self.embedded += list(zip(prompts, left, strict=True))
        return [
            torch.cat([self._row(name) for name in (*self.options.names(count), *("abc"))])
            + self._row(prompt)
            for prompt, count in zip(prompts, left, strict=True)
        ]

    def negative(self, null_caption: Tensor) -> Tensor:
        return null_caption

    @staticmethod
    def _row(text: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha1(text.encode()).digest()[:4], "big")
        return torch.randn(1, CHANNELS, generator=torch.Generator().manual_seed(seed))


def magi1_card(**magi1: Any) -> dict[str, Any]:
    """The card of a tiny checkpoint; keywords change its sampling."""
    settings = {
        "num_steps": 8, "window": 4, "chunk_width": WIDTH, "scale_factor": 1.0, "fps": 8, **magi1,
    }  # fmt: skip
    return {
        "name": "tiny-magi1",
        "prompts": [],
        "config": {
            "height": 32,
            "width": 48,
            "fps": 8,
            "vae": {
                "video_size": 32, "video_length": 8, "patch_size": 8, "patch_length": 4,
                "embed_dim": 32, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0,
                "ln_in_attn": False, "use_final_proj": True,
            },
            "dit": {
                "num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 48,
                "num_attention_heads": 4, "num_query_groups": 2, "kv_channels": 16,
                "caption_channels": CHANNELS, "caption_max_length": 60,
            },
            "text": {"d_model": CHANNELS, "max_tokens": 60},
            "sampling": {
                "chunk_width": WIDTH, "kv_range": 5, "num_steps": settings["num_steps"],
                "scale_factor": 1.0, "null_prompt_tokens": 50, "clean_null_caption": True,
            },
            "magi1": settings,
        },
    }  # fmt: skip


@functools.cache
def _weights() -> dict[str, dict[str, Tensor]]:
    torch.manual_seed(3)
    world = World(magi1_card())
    for module in (world.dit, world.vae):
        for parameter in module.parameters():
            parameter.data = torch.randn_like(parameter) / max(parameter[0].numel(), 10) ** 0.5
    return {name: module.state_dict() for name, module in world.modules().items()}


def tiny_magi1(
    *, distilled: bool = False, options: TokenOptions | None = None, **magi1: Any
) -> World:
    """Build the world; the same weights whatever its settings."""
    if distilled:
        magi1 = {"distill": True, "cfg_number": 1, **magi1}
    text: Any = StubText(TokenOptions() if options is None else options)
    with torch.random.fork_rng(devices=[]):
        weights = _weights()
        world = World(magi1_card(**magi1), text=text)
    for name, module in world.modules().items():
        module.load_state_dict(weights[name])
    return world


def video(world: World, prompts: Any = "a", chunks: int | None = 5, **keywords: Any) -> Generation:
    chosen = {k: keywords.pop(k) for k in ("prefix", "noise", "from_image") if k in keywords}
    frames = None if chunks is None else chunks * F
    return generate(
        world, prompts, num_frames=frames, settings=GenerateSettings(**keywords), **chosen
    )


def latents(world: World, prompts: Any = "a", chunks: int | None = 5, **keywords: Any) -> Tensor:
    return torch.cat([c.latents for c in video(world, prompts, chunks, **keywords)], dim=1)


def close(one: Tensor, other: Tensor, atol: float = 2e-4) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=atol, rtol=0)


def pinned(frames: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, frames, 4, 6, generator=generator)
