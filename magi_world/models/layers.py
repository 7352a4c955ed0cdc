"""Parts of the video DiT: embedders, norms, attention block, MLP (golden README section 3).

Shape suffixes: G chunks in a forward, n tokens per chunk, T = G * n packed tokens, E hidden width,
H query heads, K key-value groups, D head width, Y packed caption tokens, C condition width.

In float32 nothing is rounded. With bfloat16 parameters the places that round are those of the
published recipe (golden README section 9); every ``.to`` below is one of them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magi_world.config import DiTConfig
from magi_world.kernels.attention import AttnSlices, DeviceSlices, attention
from magi_world.kernels.modulate import gate_norm_residual
from magi_world.kernels.rope import norm_rotary, norm_rotary_write, writes_fused
from magi_world.kernels.rope.write import CacheRows, Norm
from magi_world.kernels.swiglu import silu_multiply

_NUM_FREQUENCIES = 128
INTERLEAVE = 8  # fixed by the checkpoints, whatever the number of heads


class LayerNorm1p(nn.Module):
    """LayerNorm whose effective weight is the stored weight plus one."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight + 1, self.bias, self.eps)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of t and a two-layer MLP."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        size = config.condition_size
        self.mlp = nn.Sequential(nn.Linear(256, size), nn.SiLU(), nn.Linear(size, size))

    @staticmethod
    def features(t: Tensor) -> Tensor:
        """256 features of every t, cosines first; `t: […]` float32 -> `[…, 256]`."""
        index = torch.arange(_NUM_FREQUENCIES, dtype=torch.float32, device=t.device)
        frequencies = torch.exp(-math.log(10000.0) * index / _NUM_FREQUENCIES)
        # this order of products decides the last digits: angles reach thousands of radians
        angles = (t.float()[..., None] * frequencies) * 1000
        return torch.cat([angles.cos(), angles.sin()], dim=-1)

    def forward(self, t: Tensor, feature_dtype: torch.dtype = torch.float32) -> Tensor:
        weight_dtype = next(self.mlp.parameters()).dtype
        features = self.features(t).to(feature_dtype).to(weight_dtype)
        embedded: Tensor = self.mlp(features)
        return embedded


class CaptionEmbedder(nn.Module):
    """Caption tokens for cross-attention, and the two learned vectors for the condition."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.caption_channels
        self.null_caption_embedding = nn.Parameter(torch.zeros(config.caption_max_length, width))
        self.y_proj_xattn = nn.Sequential(nn.Linear(width, config.hidden_size), nn.SiLU())
        self.y_proj_adaln = nn.Sequential(nn.Linear(width, config.condition_size))

    def project(self, tokens: Tensor) -> Tensor:
        """Project caption tokens `[…, caption_channels]` to `[…, E]`."""
        weight_dtype = next(self.y_proj_xattn.parameters()).dtype
        projected: Tensor = self.y_proj_xattn(tokens.to(weight_dtype))
        return projected

    def adaln(self, dropped: Tensor) -> Tensor:
        """Condition vector `[G, C]` of "caption dropped" (True) or "caption present" (False).

        It is the same whatever the caption says (golden README, pitfall 1).
        """
        vectors = self.y_proj_adaln(self.null_caption_embedding[-2:])  # present, dropped
        chosen: Tensor = vectors[dropped.long()]
        return chosen


class AdaModulateLayer(nn.Module):
    """Gates of one layer from the condition: the halves belong to attention and MLP."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(config.condition_size, 2 * config.hidden_size))

    def forward(self, condition_GC: Tensor) -> Tensor:
        ada: Tensor = self.proj(F.silu(condition_GC))
        return ada


class QKVProjection(nn.Module):
    """Input norm and the projections of self-attention (q, k, v) and cross-attention (qx)."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        kv = config.num_query_groups * config.kv_channels
        self.layer_norm = nn.LayerNorm(hidden, eps=config.layernorm_epsilon)
        self.q = nn.Linear(hidden, hidden, bias=False)
        self.qx = nn.Linear(hidden, hidden, bias=False)
        self.k = nn.Linear(hidden, kv, bias=False)
        self.v = nn.Linear(hidden, kv, bias=False)


class WideLinear(nn.Linear):
    """A linear that never runs below float32, whatever its weight and input are stored in."""

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        bias = None if self.bias is None else self.bias.to(wide)
        return F.linear(x.to(wide), self.weight.to(wide), bias)


class KVMemory:
    """Where the keys and values of a forward go, and what its queries read.

    This one remembers nothing: queries read the forward's own rows.
    """

    def extend(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        """Take the forward's own rows of one layer; return all rows that its queries may read."""
        return k_TKD, v_TKD

    def place(self, layer: int) -> CacheRows | None:
        """Where :meth:`extend` would write on the device, for kernels that write themselves."""
        return None


class ParallelAttention(nn.Module):
    """Self- and cross-attention from the same normed input, one output projection."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        hidden, eps, d = config.hidden_size, config.layernorm_epsilon, config.kv_channels
        self.linear_qkv = QKVProjection(config)
        self.linear_kv_xattn = nn.Linear(hidden, 2 * config.num_query_groups * d, bias=False)
        self.linear_proj = WideLinear(2 * hidden, hidden, bias=False)
        self.q_layernorm = LayerNorm1p(d, eps)
        self.k_layernorm = LayerNorm1p(d, eps)
        self.q_layernorm_xattn = LayerNorm1p(d, eps)
        self.k_layernorm_xattn = LayerNorm1p(d, eps)

    def caption_kv(self, y_YE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[Y, K, D]` of projected caption tokens."""
        d = self.config.kv_channels
        kv = self.linear_kv_xattn(y_YE.to(self.linear_kv_xattn.weight.dtype))
        k, v = kv.unflatten(-1, (self.config.num_query_groups, 2 * d)).split(d, dim=-1)
        return self.k_layernorm_xattn(k), v

    def forward(
        self,
        x_TE: Tensor,
        rotary: tuple[Tensor, Tensor],
        attend: AttnSlices | DeviceSlices,
        caption: tuple[Tensor, Tensor],
        cross: AttnSlices | DeviceSlices,
        memory: KVMemory,
        layer: int,
    ) -> Tensor:
        """Attention output before the gate `[T, E]`, float32 or the parameters' wider dtype."""
        q, qx, k, v = self.project(x_TE)
        place = memory.place(layer) if writes_fused(q) else None
        if place is None:
            # under autocast the products are narrower than x, and stay wide from here on
            q, k = self.rotate(q.to(x_TE.dtype), k.to(x_TE.dtype), rotary)
            keys, values = memory.extend(layer, k, v)
        else:
            n_q, n_k = self.q_layernorm, self.k_layernorm
            norms = Norm(n_q.weight, n_q.bias), Norm(n_k.weight, n_k.bias)
            q = norm_rotary_write(q, k, v, norms, rotary, n_q.eps, place)
            keys, values = place.keys, place.values
        own, _ = attention(q, keys, values, attend)
        crossed, _ = attention(qx, *caption, cross)
        return self.merge(own, crossed)

    def project(self, x_TE: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, normed cross-attention queries, keys and values, `[T, heads, D]` each."""
        p, d = self.linear_qkv, self.config.kv_channels
        u = p.layer_norm(x_TE)
        q, qx, k, v = (linear(u).unflatten(-1, (-1, d)) for linear in (p.q, p.qx, p.k, p.v))
        return q, self.q_layernorm_xattn(qx), k, v

    def rotate(
        self, q_THD: Tensor, k_TKD: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys, normed and rotated."""
        n_q, n_k = self.q_layernorm, self.k_layernorm
        q = norm_rotary(q_THD, n_q.weight, n_q.bias, *rotary, n_q.eps)
        return q, norm_rotary(k_TKD, n_k.weight, n_k.bias, *rotary, n_k.eps)

    def merge(self, own_THD: Tensor, crossed_THD: Tensor) -> Tensor:
        """Output projection of what both attentions give, `[T, E]`."""
        both = torch.stack([own_THD.flatten(1), crossed_THD.flatten(1)], dim=1)  # [T, 2, E]
        both = both.unflatten(-1, (INTERLEAVE, -1)).transpose(1, 2).flatten(1)
        out: Tensor = self.linear_proj(both)
        return out


class MLP(nn.Module):
    """Norm, linear, GELU (exact) or SwiGLU, linear; no bias."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        hidden, ffn = config.hidden_size, config.ffn_hidden_size
        self.gated = config.gated_linear_unit
        self.layer_norm = nn.LayerNorm(hidden, eps=config.layernorm_epsilon)
        self.linear_fc1 = nn.Linear(hidden, ffn * (2 if self.gated else 1), bias=False)
        self.linear_fc2 = nn.Linear(ffn, hidden, bias=False)

    def activate(self, h: Tensor) -> Tensor:
        """Exact GELU, or SiLU(first half) * second half with one rounding."""
        if not self.gated:
            return F.gelu(h)
        return silu_multiply(h)

    def forward(self, x_TE: Tensor) -> Tensor:
        out: Tensor = self.linear_fc2(self.activate(self.linear_fc1(self.layer_norm(x_TE))))
        return out


class TransformerLayer(nn.Module):
    """One layer: gate first, then post-norm, then residual; no shift or scale."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.layernorm_epsilon
        self.ada_modulate_layer = AdaModulateLayer(config)
        self.self_attention = ParallelAttention(config)
        self.self_attn_post_norm = LayerNorm1p(hidden, eps)
        self.mlp = MLP(config)
        self.mlp_post_norm = LayerNorm1p(hidden, eps)

    def _add(self, x_TE: Tensor, branch_TE: Tensor, gate_GE: Tensor, norm: LayerNorm1p) -> Tensor:
        return gate_norm_residual(x_TE, branch_TE, gate_GE, norm.weight, norm.bias, norm.eps)

    def forward(
        self,
        x_TE: Tensor,
        condition_GC: Tensor,
        rotary: tuple[Tensor, Tensor],
        attend: AttnSlices | DeviceSlices,
        caption: tuple[Tensor, Tensor],
        cross: AttnSlices | DeviceSlices,
        memory: KVMemory,
        layer: int,
    ) -> Tensor:
        ada_G2E = self.ada_modulate_layer(condition_GC)
        gate_msa, gate_mlp = torch.tanh(ada_G2E.float()).to(ada_G2E.dtype).chunk(2, dim=-1)
        attn = self.self_attention(x_TE, rotary, attend, caption, cross, memory, layer)
        return self.finish(x_TE, attn, gate_msa, gate_mlp)

    def finish(
        self, x_TE: Tensor, attn_TE: Tensor, gate_msa_GE: Tensor, gate_mlp_GE: Tensor
    ) -> Tensor:
        """Both branches added: the attention's, which is given, and the MLP's."""
        after_attn = self._add(x_TE, attn_TE, gate_msa_GE, self.self_attn_post_norm)
        return self._add(after_attn, self.mlp(after_attn), gate_mlp_GE, self.mlp_post_norm)
