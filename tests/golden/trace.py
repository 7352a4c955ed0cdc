"""Record what happens inside the first layer, from outside the model.

The model offers no trace of its own: forward hooks see what enters and leaves its modules, and
wrappers around its calls of attention and of the gated post-norm see what goes through them.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from magi_world.kernels.attention import attention
from magi_world.kernels.modulate import gate_norm_residual, gated_norm
from magi_world.models.dit import VideoDiT

Trace = dict[str, Tensor]


@contextmanager
def traced(dit: VideoDiT, num_clips: int) -> Iterator[Trace]:
    """Fill the yielded dictionary during the one forward of clips that runs inside the block.

    Names and layouts are those of the golden cases `layer_trace_*`; S are the tokens of one clip,
    N = ``num_clips``.
    """
    trace: Trace = {}
    layer = dit.layers[0]
    blocks = dit.videodit_blocks

    def clip_last(x_TE: Tensor) -> Tensor:
        x_NSE: Tensor = x_TE.unflatten(0, (num_clips, -1))
        return x_NSE.transpose(0, 1)

    def enter_layer(_: nn.Module, args: tuple[Any, ...]) -> None:
        hidden, condition, (cos, sin) = args[:3]
        rows, tokens = condition.shape[0], hidden.shape[0]
        trace["hidden_in"] = clip_last(hidden)
        trace["condition"] = condition.unflatten(0, (num_clips, -1))
        # the gates of chunk g apply to the g-th of equally long runs of tokens
        owner = torch.arange(rows).repeat_interleave(tokens // rows)
        trace["condition_map"] = clip_last(owner)
        trace["rope"] = torch.cat([sin, cos], dim=-1)[: tokens // num_clips]

    def see_attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        q, k, v = args[:3]
        out, lse = attention(*args, **kwargs)
        if "q" not in trace:
            for name, x in (("q", q), ("k", k), ("v", v), ("core_attn", out)):
                trace[name] = clip_last(x).flatten(0, 1)
        elif "xq" not in trace:
            trace.update(xq=q, xk=k, xv=v, cross_attn=clip_last(out.flatten(1)))
        return out, lse

    def see_branch(*args: Any, **kwargs: Any) -> Tensor:
        names = [name for name in ("attn_post_norm", "mlp_post_norm") if name not in trace]
        if names:
            trace[names[0]] = clip_last(gated_norm(*args[1:], **kwargs))
        return gate_norm_residual(*args, **kwargs)

    outputs = {
        "qkv_ln": layer.self_attention.linear_qkv.layer_norm,
        "attn_proj": layer.self_attention,
        "mlp_out": layer.mlp,
        "layer0_out": layer,
        "final_ln": blocks.final_layernorm,
        "final_linear": dit.final_linear,
    }
    with ExitStack() as stack:
        stack.enter_context(mock.patch("magi_world.models.layers.attention", see_attention))
        stack.enter_context(mock.patch("magi_world.models.layers.gate_norm_residual", see_branch))
        hooks = [layer.register_forward_pre_hook(enter_layer)]

        def record(module: nn.Module, name: str, clips: bool = True) -> None:
            def hook(_: nn.Module, args: Any, output: Tensor) -> None:
                trace[name] = clip_last(output.flatten(0, -2)) if clips else output

            hooks.append(module.register_forward_hook(hook))

        for name, module in outputs.items():
            record(module, name)
        record(dit.y_embedder.y_proj_xattn, "y_xattn_flat", clips=False)
        record(layer.ada_modulate_layer, "ada_out", clips=False)
        for handle in hooks:
            stack.callback(handle.remove)
        yield trace
    trace["ada_out"] = trace["ada_out"].unflatten(0, (num_clips, -1))
