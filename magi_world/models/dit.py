"""The video DiT on packed chunks (MAGI-1 paper section 2, golden README section 3).

A forward takes G chunks side by side: the slots of a batched rollout, the window of a pipelined
sampler or the clean and noisy copies of training sequences. Who sees whom is told by slices, so
the same code serves all of them. Parameter names are MAGI-1's.

Shape suffixes: G chunks, P latent frames per chunk, n tokens per chunk, T = G * n packed tokens,
E hidden width, C condition width, Y packed caption tokens, K key-value groups, D head width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magi_world.config import DiTConfig
from magi_world.errors import ConfigError
from magi_world.kernels.attention import AttnSlices, DeviceSlices
from magi_world.models.inplace import InPlaceLayers, Shared
from magi_world.models.layers import (
    CaptionEmbedder,
    KVMemory,
    LayerNorm1p,
    TimestepEmbedder,
    TransformerLayer,
)
from magi_world.models.rope import LearnableRope

CaptionKV = list[tuple[Tensor, Tensor]]
"""Keys and values `[Y, K, D]` of packed caption tokens, one pair per layer."""

# parameters that stay float32 when a model runs in bfloat16 (golden README section 9)
_FLOAT32_PARTS = (
    "x_embedder", "t_embedder", "y_embedder", "rope", "final_linear", "final_layernorm", "keep.",
    "around.", "q_layernorm.", "k_layernorm.", "self_attn_post_norm", "mlp_post_norm",
)  # fmt: skip


# the velocity towards a predicted clean chunk grows without bound as t nears 1; where the last step
# of a grid begins, more than this is left, and clean passes do not use their velocity
_LEAST_TIME_LEFT = 0.05


@dataclass(frozen=True, kw_only=True)
class ChunkInputs:
    """One forward's chunks and everything that conditions them."""

    x: Tensor
    """latents `[G, C, P, H, W]`"""
    t: Tensor
    """timesteps `[G]`, 0 noise, 1 clean"""
    dropped: Tensor
    """booleans `[G]`: True takes the condition vector of a dropped caption"""
    rotary: tuple[Tensor, Tensor]
    """cosine and sine of every token, from :meth:`VideoDiT.rotary`"""
    caption: CaptionKV
    """from :meth:`VideoDiT.caption_kv`"""
    attend: AttnSlices | DeviceSlices
    """token rows `[0, T)` to the key rows that the memory returns"""
    cross: AttnSlices | DeviceSlices
    """token rows to caption rows"""
    dt: Tensor | None = None
    """step-size feature `[G]` of distilled models"""
    previous: Tensor | None = None
    """the chunk before each, `[G, C, P, H, W]`, zeros where there is none; models with
    `previous_chunk` need it"""


class DiTOutput(NamedTuple):
    """What a forward returns."""

    velocity: Tensor
    """`[G, C, P, H, W]`, the derivative of the latents by t"""
    hidden: Tensor
    """`[G, n, E]`, the normed hidden states behind the velocity"""


class Blocks(nn.Module):
    """The stack of layers and its final norm."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.final_layernorm = LayerNorm1p(config.hidden_size, config.layernorm_epsilon)


class FinalLinear(nn.Module):
    """Hidden states to patches of latents."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        patch = config.t_patch_size * config.patch_size**2
        self.linear = nn.Linear(config.hidden_size, patch * config.out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        return out


class VideoDiT(nn.Module):
    """Velocity field over chunks of latents, conditioned on text, time and cached history."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        patch = (config.t_patch_size, config.patch_size, config.patch_size)
        read = config.in_channels * (2 if config.previous_chunk else 1)
        self.x_embedder = nn.Conv3d(read, config.hidden_size, patch, stride=patch, bias=False)
        self.t_embedder = TimestepEmbedder(config)
        self.y_embedder = CaptionEmbedder(config)
        self.rope = LearnableRope(config.kv_channels)
        self.videodit_blocks = Blocks(config)
        self.final_linear = FinalLinear(config)
        if config.previous_chunk:
            self.keep = nn.Linear(config.hidden_size, config.patch_size**2)
        if border := config.previous_around:
            side = config.patch_size + 2 * border
            self.around = nn.Conv3d(
                config.in_channels, config.hidden_size, (config.t_patch_size, side, side),
                stride=patch, padding=(0, border, border), bias=False,
            )  # fmt: skip

    @property
    def layers(self) -> list[TransformerLayer]:
        """The transformer layers in order."""
        return list(self.videodit_blocks.layers)  # type: ignore[arg-type]

    @property
    def block_dtype(self) -> torch.dtype:
        """Dtype of the hidden states between layers."""
        return self.layers[0].self_attention.linear_qkv.q.weight.dtype

    def to_recipe(self, dtype: torch.dtype) -> "VideoDiT":
        """Cast the parameters that run in ``dtype``; the others stay float32 (section 9)."""
        for name, parameter in self.named_parameters():
            parameter.data = parameter.data.to(self.recipe_dtype(name, dtype))
        return self

    @staticmethod
    def recipe_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
        """Dtype of the parameter of this name in a model that runs in ``dtype``."""
        return torch.float32 if any(part in name for part in _FLOAT32_PARTS) else dtype

    def rotary(self, first_frame: Tensor, size: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Rotary table of chunks that start at the given latent frames.

        Args:
            first_frame: integers `[G]`.
            size: latent frames, rows and columns of a chunk, before patching.

        Returns:
            Cosine and sine, each `[G * n, 3 * (D // 8)]` float32.
        """
        frames, height, width = size
        patch = self.config.patch_size
        return self.rope.table(first_frame, frames, height // patch, width // patch)

    def caption_kv(self, tokens: Tensor) -> CaptionKV:
        """Cross-attention keys and values of caption tokens `[Y, caption_channels]`."""
        projected = self.y_embedder.project(tokens).to(self.block_dtype)
        return [layer.self_attention.caption_kv(projected) for layer in self.layers]

    def condition(self, inputs: ChunkInputs) -> Tensor:
        """Condition vector of every chunk `[G, C]`: time, step size and caption flag."""
        feature_dtype = self.block_dtype
        condition = self.t_embedder(inputs.t, feature_dtype)
        if inputs.dt is not None:
            condition = condition + self.t_embedder(inputs.dt, feature_dtype)
        total: Tensor = condition + self.y_embedder.adaln(inputs.dropped)
        return total.to(self.block_dtype)

    def _embed(self, x_GCPHW: Tensor, previous_GCPHW: Tensor | None = None) -> Tensor:
        """Latents to tokens `[T, E]`; a patch of the chunk itself is one matrix product."""
        config = self.config
        x = x_GCPHW.to(self.x_embedder.weight.dtype) * config.x_rescale_factor
        if previous_GCPHW is not None:
            x = torch.cat([x, previous_GCPHW.to(x.dtype) * config.x_rescale_factor], dim=1)
        if config.half_channel_vae:
            x = torch.cat([x, x], dim=1)
        G, C, P, H, W = x.shape
        s = config.patch_size
        patches = x.view(G, C, P, H // s, s, W // s, s).permute(0, 2, 3, 5, 1, 4, 6)
        tokens = F.linear(patches.flatten(4).flatten(0, 3), self.x_embedder.weight.flatten(1))
        if previous_GCPHW is not None and config.previous_around:
            seen_GEPHW: Tensor = self.around(x[:, config.in_channels :])
            tokens = tokens + seen_GEPHW.movedim(1, -1).flatten(0, 3)
        return tokens

    def _unpatch(self, tokens_TO: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Output tokens to latents `[G, C, P, H, W]`; inner order row, column, channel."""
        config, s = self.config, self.config.patch_size
        P, H, W = size
        x = tokens_TO.view(-1, P, H // s, W // s, s, s, config.out_channels)
        x = x.permute(0, 6, 1, 2, 4, 3, 5).reshape(-1, config.out_channels, P, H, W)
        return x[:, : config.latent_channels] / config.x_rescale_factor

    def forward(self, inputs: ChunkInputs, memory: KVMemory | None = None) -> DiTOutput:
        """Predict the velocity of every chunk.

        Args:
            inputs: chunks and conditions.
            memory: takes each layer's keys and values and returns what the queries read;
                without one they read the forward's own rows.

        Returns:
            Velocity and hidden states.
        """
        memory = KVMemory() if memory is None else memory
        size = (inputs.x.shape[2], inputs.x.shape[3], inputs.x.shape[4])
        condition = self.condition(inputs)
        if (inputs.previous is not None) != self.config.previous_chunk:
            raise ConfigError("a model with previous_chunk is given the previous one, others not")
        hidden = self._embed(inputs.x, inputs.previous).to(self.block_dtype)
        layers = self.layers
        if InPlaceLayers.fits(layers, hidden):
            shared = Shared(condition, inputs.rotary, inputs.attend, inputs.cross, memory)
            widest = layers[0].mlp.linear_fc1.out_features
            run = InPlaceLayers(shared, widest).run
            for index, layer in enumerate(layers):
                run(layer, hidden, inputs.caption[index], index)
        else:
            for index, layer in enumerate(layers):
                hidden = layer(
                    hidden, condition, inputs.rotary, inputs.attend,
                    inputs.caption[index], inputs.cross, memory, index,
                )  # fmt: skip
        final = self.videodit_blocks.final_layernorm
        normed = final(hidden.to(final.weight.dtype))
        velocity = self._unpatch(self.final_linear(normed), size)
        if inputs.previous is not None:
            velocity = velocity + self._kept(normed, size) * (inputs.previous - velocity)
        if self.config.predicts == "clean":
            left = (1 - inputs.t).clamp_min(_LEAST_TIME_LEFT).view(-1, 1, 1, 1, 1)
            velocity = (velocity - inputs.x) / left
        return DiTOutput(velocity, normed.unflatten(0, (inputs.x.shape[0], -1)))

    def _kept(self, normed_TE: Tensor, size: tuple[int, int, int]) -> Tensor:
        """How much of the previous chunk stays at every place, `[G, 1, P, H, W]` in 0 to 1."""
        (P, H, W), s = size, self.config.patch_size
        share = self.keep(normed_TE).sigmoid().view(-1, P, H // s, W // s, s, s)
        kept: Tensor = share.permute(0, 1, 2, 4, 3, 5).reshape(-1, 1, P, H, W)
        return kept
