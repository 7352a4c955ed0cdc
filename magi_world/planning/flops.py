"""Floating point operations of the video DiT in closed form.

Counted are matrix products and attention, two operations a multiply-add, as FLOP counters do;
norms, activations and rotations are left out. Spec sections 2.3 to 2.5 list the products.
"""

from dataclasses import dataclass

from magi_world.config import DiTConfig


@dataclass(frozen=True, kw_only=True)
class ForwardFlops:
    """Operations of one chunk in one forward, by part."""

    embed: int
    """patches in and out, time and caption flag"""
    linears: int
    """projections of queries, keys and values, the output projection, gates"""
    mlp: int
    attention: int
    """self-attention"""
    cross_attention: int

    @property
    def total(self) -> int:
        """All parts."""
        return self.embed + self.linears + self.mlp + self.attention + self.cross_attention


def forward_flops(
    config: DiTConfig, *, tokens: int, keys: int, caption_tokens: int, distilled: bool = False
) -> ForwardFlops:
    """Operations of one chunk in a forward of the DiT.

    Args:
        config: the model.
        tokens: tokens n of the chunk.
        keys: tokens that its queries see, its own included.
        caption_tokens: rows of its caption, whose keys and values are there already.
        distilled: the step size is embedded too.
    """
    E, C, L = config.hidden_size, config.condition_size, config.num_layers
    kv = config.num_query_groups * config.kv_channels
    patch = config.patch_size**2
    embedder = 2 * (256 * C + C * C) * (1 + distilled)
    gated = 3 if config.gated_linear_unit else 2
    return ForwardFlops(
        embed=2 * tokens * E * patch * (config.in_channels + config.out_channels) + embedder,
        # q, qx and the two halves of the output projection are E x E; k and v are E x kv
        linears=L * (2 * tokens * (4 * E * E + 2 * E * kv) + 2 * C * 2 * E),
        mlp=L * 2 * tokens * gated * E * config.ffn_hidden_size,
        attention=L * 4 * tokens * keys * E,
        cross_attention=L * 4 * tokens * caption_tokens * E,
    )


def caption_flops(config: DiTConfig, caption_tokens: int) -> int:
    """Operations of a prompt's cross-attention keys and values, once a prompt."""
    E, kv = config.hidden_size, config.num_query_groups * config.kv_channels
    keys_values = 2 * caption_tokens * E * config.num_layers * 2 * kv
    return caption_projection_flops(config, caption_tokens) + keys_values


def caption_projection_flops(config: DiTConfig, caption_tokens: int) -> int:
    """Operations of projecting a caption to the width of the model, a part of the above."""
    return 2 * caption_tokens * config.hidden_size * config.caption_channels
