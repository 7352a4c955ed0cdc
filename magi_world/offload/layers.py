"""A DiT whose layers are streamed from host memory."""

import torch

from magi_world.models.dit import VideoDiT
from magi_world.offload.stream import WeightStream


def stream_layers(dit: VideoDiT, device: str | torch.device) -> list[WeightStream]:
    """Keep the layers of a DiT in host memory; everything else of it moves to the device.

    The projections of prompts run apart from the layers, once per prompt for all layers, so they
    form a stream of their own.

    Args:
        dit: a model in host memory. Cast it first (`VideoDiT.to_recipe`).
        device: where it computes.

    Returns:
        The streams of the layers and of the prompts' projections; `close` ends them.
    """
    attentions = [layer.self_attention for layer in dit.layers]
    apart = [(a.linear_kv_xattn, a.k_layernorm_xattn) for a in attentions]
    streams = [
        WeightStream(dit.layers, device, without=apart),
        WeightStream([projection for projection, _ in apart], device),
    ]
    for part in (dit.x_embedder, dit.t_embedder, dit.y_embedder, dit.rope, dit.final_linear):
        part.to(device)
    for name in ("keep", "around"):  # of worlds that read the previous chunk
        if (own := getattr(dit, name, None)) is not None:
            own.to(device)
    dit.videodit_blocks.final_layernorm.to(device)
    for _, norm in apart:
        norm.to(device)  # one head wide, called behind the projection
    return streams
