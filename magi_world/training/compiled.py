"""The layers of a DiT in training, compiled between their attentions.

What lies between two attentions of a small model is norms, gates and casts more than products, and
compiled they run through memory once. Attention itself stays as it is: its masks change from batch
to batch, and each would be compiled again.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch

from magi_world.models.dit import VideoDiT
from magi_world.models.layers import ParallelAttention, TransformerLayer

_OF_ATTENTION = ("project", "rotate", "merge")
_OF_LAYER = ("finish",)


@cache
def _compiled(kind: type, name: str) -> Any:
    """One compiled function for the layers of all models; their weights are arguments to it."""
    return torch.compile(getattr(kind, name), dynamic=False)


@contextmanager
def compiled_layers(dit: VideoDiT) -> Iterator[None]:
    """The DiT with compiled layers, for as long as the block runs; the first pass compiles.

    Numbers differ from those of the plain layers by rounding only.
    """
    parts = [
        (module, name, _compiled(kind, name))
        for layer in dit.layers
        for module, kind, names in (
            (layer.self_attention, ParallelAttention, _OF_ATTENTION),
            (layer, TransformerLayer, _OF_LAYER),
        )
        for name in names
    ]
    for module, name, function in parts:
        setattr(module, name, partial(function, module))
    try:
        with warnings.catch_warnings():  # the compiler asks hidden states for a gradient
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not")
            yield
    finally:  # a module with functions of its own could not be pickled for a worker
        for module, name, _ in parts:
            delattr(module, name)
