"""Memory of a model, in bytes, before it runs.

Weights are counted tensor by tensor on a model without storage. What a forward holds at its peak
is a formula over the tensors that live at the two places where most do: behind the attention of a
layer and inside its MLP. Tests hold it against measured peaks.

E hidden width, F width of the MLP, H heads, K key-value channels (groups * head width), R rotary
angles a token, n tokens a chunk.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

from magi_world.config import DiTConfig, VAEConfig
from magi_world.models.dit import VideoDiT
from magi_world.models.fp8 import install_fp8, quantised_names
from magi_world.models.vae import VitVAE

_FLOAT = 4  # bytes of float32
_TILE = (12, 256, 256)  # frames, rows and columns of a tile of the VAE


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Parameters of a model and what they take."""

    parameters: int
    nbytes: int


@lru_cache(maxsize=32)
def dit_weights(config: DiTConfig, dtype: torch.dtype, *, fp8: bool = False) -> Weights:
    """The DiT in the mixed-precision recipe of a dtype; with ``fp8`` its middle layers in FP8.

    The parameters counted are those of the model before it was quantised.
    """
    with torch.device("meta"):
        dit = VideoDiT(config)
    parameters = sum(parameter.numel() for parameter in dit.parameters())
    if fp8:
        install_fp8(dit, quantised_names(config.num_layers))
    return Weights(parameters=parameters, nbytes=_nbytes(dit.to_recipe(dtype)))


@lru_cache(maxsize=32)
def vae_weights(config: VAEConfig) -> Weights:
    """The VAE, encoder and decoder, in float32."""
    with torch.device("meta"):
        vae = VitVAE(config)
    return Weights(parameters=sum(p.numel() for p in vae.parameters()), nbytes=_nbytes(vae))


def _nbytes(module: nn.Module) -> int:
    tensors = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def kv_bytes(config: DiTConfig, tokens: int, dtype: torch.dtype) -> int:
    """Keys and values of so many tokens in all layers (spec section 0)."""
    channels = config.num_query_groups * config.kv_channels
    return tokens * 2 * channels * dtype.itemsize * config.num_layers


def caption_bytes(config: DiTConfig, caption_tokens: int, dtype: torch.dtype) -> int:
    """Cross-attention keys and values of so many caption tokens in all layers."""
    return kv_bytes(config, caption_tokens, dtype)


def activation_bytes(
    config: DiTConfig, *, chunks: int, tokens: int, seen: int, dtype: torch.dtype
) -> int:
    """Most that a forward holds beside weights, cache, latents and captions.

    Attention is taken to keep no scores.

    Args:
        config: the model.
        chunks: chunks of the forward.
        tokens: tokens n of a chunk.
        seen: most chunks that one of them sees, itself included.
        dtype: of the hidden states.
    """
    if dtype is torch.float32:
        return _in_place_bytes(config, chunks=chunks, tokens=tokens, seen=seen)
    E, F, H = config.hidden_size, config.ffn_hidden_size, config.num_attention_heads
    K, b = config.num_query_groups * config.kv_channels, dtype.itemsize
    T = chunks * tokens
    # input, norm, q and qx, own k and v
    projected = (4 * E + 2 * K) * b
    # results so far; of one chunk its queries, its result and what it sees of the ring
    reading = T * (projected + E * b) + tokens * (2 * E + seen * 2 * K) * b
    # both results and their log-sum-exp, interleaved, widened to float32, projected
    mixing = projected + 4 * E * b + H * _FLOAT + 3 * E * _FLOAT
    # input of the layer, result of its attention in float32, their sum
    mlp = 2 * E * b + E * _FLOAT + 2 * F * b
    if config.gated_linear_unit:  # both halves widened to float32, SiLU and product
        mlp += 4 * F * _FLOAT
    return max(reading, T * mixing, T * mlp) + 2 * E * E * _FLOAT  # weight of the projection


def _in_place_bytes(config: DiTConfig, *, chunks: int, tokens: int, seen: int) -> int:
    """The same for the layers that work in place (:mod:`magi_world.models.inplace`)."""
    E, H = config.hidden_size, config.num_attention_heads
    F = config.ffn_hidden_size * (2 if config.gated_linear_unit else 1)
    K, T = config.num_query_groups * config.kv_channels, chunks * tokens
    share = H // config.num_query_groups
    copies = 2 if share > 1 else 1  # with keys that heads share the queries are laid out anew
    # input, norm, q, own k, result; of one chunk its queries, its result and what it sees
    reading = T * (4 * E + K + H) + tokens * (copies * E + seen * 2 * K)
    reading += _kernel_floats(tokens * share, seen * tokens, config.kv_channels)
    # input, result of self-attention, queries and result of cross-attention
    crossing = T * (4 * E + 2 * H + (2 * E + H if share > 1 else 0))
    # the buffer comes behind the attention of the first layer and stays
    buffer = T * max(2 * E, F)
    attention = max(reading, crossing) + (buffer if config.num_layers > 1 else 0)
    return _FLOAT * max(attention, buffer + T * (3 * E + 2 * H))


def _kernel_floats(rows: int, keys: int, head_width: int) -> int:
    """What PyTorch's attention on a CPU holds: scores and sums of a block, in every thread."""
    block = 256 if rows >= 768 else 64 if rows >= 192 else 32
    return torch.get_num_threads() * min(block, rows) * (min(512, keys) + 2 + head_width)


def window_bytes(
    config: DiTConfig, *, window: int, tokens: int, cfg_number: int, clean_chunk: bool = True
) -> int:
    """Latents of a window, the velocities of a step, and the rotary tables of its passes.

    The chunk that left the window last stays until its clean pass.
    """
    latent = config.latent_channels * config.patch_size**2 * _FLOAT  # a token's
    # chunks of the window, the one that left and the one that comes in its place; all of them as
    # input, as output and, where passes are weighed, scaled and summed up
    copies = window + 1 + clean_chunk + window * (4 if cfg_number > 1 else 2)
    tables = 2 * 3 * (config.kv_channels // 8) * _FLOAT * cfg_number
    return tokens * (copies * latent + window * tables)


def vae_bytes(config: VAEConfig, frames: int, height: int, width: int) -> int:
    """Most that decoding so many frames holds beside weights, tile by tile; encoding takes less."""
    t, h, w = (min(tile, size) for tile, size in zip(_TILE, (frames, height, width), strict=True))
    pixels = t * h * w
    patch = config.patch_length * config.patch_size**2
    # residual stream with q, k, v and their norm, or with the MLP
    blocks = (pixels // patch + 1) * config.embed_dim * max(12.0, 3 + 2 * config.mlp_ratio)
    colours = 4 if config.use_final_proj else config.embed_dim // patch
    # the last convolution gathers its 27 neighbours
    convolution = pixels * (27 * colours + 2 * colours + 3)
    # overlapping tiles of the current half second and of the one before, blended and joined
    copies = 3.4 if (h, w) != (height, width) else 1.2 if t != frames else 0.0
    return int(_FLOAT * (max(blocks, convolution) + copies * 3 * frames * height * width))
