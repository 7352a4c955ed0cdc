"""A transformer layer without gradients: the same formulas, in place, for float32 on a CPU.

There, matrix products run near the processor's peak, so what is left to save is everything beside
them. Results overwrite what nobody reads any more, what the MLP widens to goes into one buffer
that all layers share, and nothing is converted. Layers of another kind, half precision, GPUs,
gradients and layers that somebody watches through hooks take the forward of
:class:`magi_world.models.layers.TransformerLayer`, which this one is tested against.

Shape suffixes as in :mod:`magi_world.models.layers`; F the width that the MLP widens to.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from magi_world.kernels.attention import AttnSlices, DeviceSlices, attention
from magi_world.models.layers import (
    INTERLEAVE,
    KVMemory,
    LayerNorm1p,
    TransformerLayer,
    WideLinear,
)


class Shared(NamedTuple):
    """What all layers of one forward read."""

    condition_GC: Tensor
    rotary: tuple[Tensor, Tensor]
    attend: AttnSlices | DeviceSlices
    cross: AttnSlices | DeviceSlices
    memory: KVMemory


class InPlaceLayers:
    """Runs the layers of one forward; made anew for every forward."""

    def __init__(self, shared: Shared, widest: int) -> None:
        """Take what the layers share, and the most channels that one of them widens to."""
        self.shared = shared
        cos_TR, sin_TR = shared.rotary
        self._cos, self._sin = cos_TR[:, None], sin_TR[:, None]  # over the heads
        self._most = widest
        self._block: Tensor | None = None

    @staticmethod
    def fits(layers: list[TransformerLayer], hidden_TE: Tensor) -> bool:
        """Whether these layers can run this way on hidden states."""
        return (
            hidden_TE.dtype == torch.float32
            and hidden_TE.device.type == "cpu"
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and all(_plain(layer) for layer in layers)
        )

    def run(
        self, layer: TransformerLayer, x_TE: Tensor, caption: tuple[Tensor, Tensor], index: int
    ) -> None:
        """Run one layer on hidden states, in place."""
        ada_G2E = layer.ada_modulate_layer(self.shared.condition_GC).tanh_()
        gate_attn, gate_mlp = ada_G2E.chunk(2, dim=-1)
        attn_TE = self._attention(layer, x_TE, caption, index)
        _add(x_TE, attn_TE, gate_attn, layer.self_attn_post_norm)
        del attn_TE
        _add(x_TE, self._mlp(layer, x_TE), gate_mlp, layer.mlp_post_norm)

    def _attention(
        self, layer: TransformerLayer, x_TE: Tensor, caption: tuple[Tensor, Tensor], index: int
    ) -> Tensor:
        block, shared = layer.self_attention, self.shared
        p, D = block.linear_qkv, block.config.kv_channels
        T, E = x_TE.shape
        u_TE = p.layer_norm(x_TE)
        k = self._rotate(block.k_layernorm(p.k(u_TE).unflatten(-1, (-1, D))))
        keys, values = shared.memory.extend(index, k, p.v(u_TE).unflatten(-1, (-1, D)))
        q = self._rotate(block.q_layernorm(p.q(u_TE).unflatten(-1, (-1, D))))
        own, _ = attention(q, keys, values, shared.attend)
        del q, k, keys, values
        q = block.q_layernorm_xattn(p.qx(u_TE).unflatten(-1, (-1, D)))
        del u_TE
        crossed, _ = attention(q, *caption, shared.cross)
        del q
        both = self._buffer(x_TE, 2 * E).view(T, INTERLEAVE, 2, E // INTERLEAVE)
        both[:, :, 0] = own.reshape(T, INTERLEAVE, -1)
        both[:, :, 1] = crossed.reshape(T, INTERLEAVE, -1)
        out: Tensor = F.linear(both.view(T, 2 * E), block.linear_proj.weight)
        return out

    def _buffer(self, x_TE: Tensor, width: int) -> Tensor:
        """Room for `[T, width]` that belongs to nobody for long.

        One block for all layers: memory that is given back and asked for again comes without
        pages, and the system takes as long to put them in as a norm takes to compute.
        """
        size = x_TE.shape[0] * width
        if self._block is None or self._block.numel() < size:
            self._block = x_TE.new_empty(max(size, x_TE.shape[0] * self._most))
        return self._block[:size].view(-1, width)

    def _rotate(self, x_THD: Tensor) -> Tensor:
        """:func:`magi_world.models.rope.rotate`, in place."""
        half = self._cos.shape[-1]
        a, b = x_THD[..., :half], x_THD[..., half : 2 * half]
        turned = a * self._sin
        a.mul_(self._cos).addcmul_(b, self._sin, value=-1)
        b.mul_(self._cos).add_(turned)
        return x_THD

    def _mlp(self, layer: TransformerLayer, x_TE: Tensor) -> Tensor:
        mlp = layer.mlp
        weight_FE = mlp.linear_fc1.weight
        wide = self._buffer(x_TE, weight_FE.shape[0])
        h_TF = torch.mm(mlp.layer_norm(x_TE), weight_FE.t(), out=wide)
        if mlp.gated:
            gate, up = h_TF.chunk(2, dim=-1)
            h_TF = F.silu(gate, inplace=True).mul_(up)
        else:
            torch.ops.aten.gelu_(h_TF)
        return F.linear(h_TF, mlp.linear_fc2.weight)


def _add(x_TE: Tensor, branch_TE: Tensor, gate_GE: Tensor, norm: LayerNorm1p) -> None:
    """Gate, post-norm and residual; overwrites the branch."""
    branch_TE.unflatten(0, (gate_GE.shape[0], -1)).mul_(gate_GE[:, None])
    x_TE.add_(norm(branch_TE))


def _plain(layer: TransformerLayer) -> bool:
    """Whether every linear is a float32 one of the usual kind, and nobody watches the layer."""
    block, mlp = layer.self_attention, layer.mlp
    p = block.linear_qkv
    linears: tuple[Any, ...] = (p.q, p.qx, p.k, p.v, mlp.linear_fc1, mlp.linear_fc2)
    return (
        type(block.linear_proj) is WideLinear
        and all(type(linear) is nn.Linear for linear in linears)
        and not any(_watched(part) for part in (layer, block, mlp, block.linear_proj, *linears))
    )


def _watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
