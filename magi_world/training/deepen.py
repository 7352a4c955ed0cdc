"""Begin a model with the weights of a smaller one.

New layers pass their input through, and a model that reads the chunk before overlooks it at first.

Shape suffixes: none, only whole tensors are moved.
"""

import torch
from torch import Tensor

from magi_world.models.dit import VideoDiT

_LAYER = "videodit_blocks.layers."


def layer_places(old: int, new: int) -> list[int]:
    """Where the layers of the shallow model stand among those of the deep one, evenly spread.

    Raises:
        ValueError: the deep model has fewer layers, or the shallow one none.
    """
    if not 1 <= old <= new:
        raise ValueError(f"{old} layers cannot be spread over {new}")
    return [round(i * (new - 1) / max(1, old - 1)) for i in range(old)]


def deepened(dit: VideoDiT, state: dict[str, Tensor], old_layers: int) -> dict[str, Tensor]:
    """Weights of ``dit`` that compute what ``state``, of a model with ``old_layers``, computes.

    Layers between the old ones keep the weights that ``dit`` has, behind post-norms of weight 0
    (stored minus one): they change nothing at first and learn from the first step on.
    """
    places = layer_places(old_layers, len(dit.layers))
    result = {name: tensor.clone() for name, tensor in dit.state_dict().items()}
    for index in set(range(len(dit.layers))) - set(places):
        for norm in ("self_attn_post_norm", "mlp_post_norm"):
            result[f"{_LAYER}{index}.{norm}.weight"] = torch.full_like(
                result[f"{_LAYER}{index}.{norm}.weight"], -1.0
            )
            result[f"{_LAYER}{index}.{norm}.bias"].zero_()
    for name, tensor in state.items():
        if name.startswith(_LAYER):
            place, rest = name[len(_LAYER) :].split(".", 1)
            name = f"{_LAYER}{places[int(place)]}.{rest}"
        result[name] = tensor
    return result


def widened(dit: VideoDiT, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for ``dit``, which reads the previous chunk, or more of it, than that of ``state``.

    What is new of its input begins with weight 0; what decides how much of the chunk before stays
    is left as ``dit`` has it.
    """
    weight = torch.zeros_like(dit.x_embedder.weight)
    weight[:, : state["x_embedder.weight"].shape[1]] = state["x_embedder.weight"]
    keep = {f"keep.{name}": tensor.clone() for name, tensor in dit.keep.state_dict().items()}
    wider = {**keep, **state, "x_embedder.weight": weight}
    if dit.config.previous_around and "around.weight" not in state:
        wider["around.weight"] = torch.zeros_like(dit.around.weight)
    return wider
