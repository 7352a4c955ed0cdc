"""A world larger than its card: weights and history in host memory, moved in when needed.

Three ways, each of its own use: whole modules that are idle most of the time (text encoder, VAE)
live outside and come in for a call; the layers of the DiT come in one after the other, the next
while the last one computes; and the KV cache stays outside with two layers of it on the card.
On a CPU the same code runs with plain copies, and the numbers are the same everywhere.
"""

from magi_world.offload.copies import CopyLane
from magi_world.offload.kv_rows import DeviceRows, HostRows, KVRows
from magi_world.offload.layers import stream_layers
from magi_world.offload.modules import OnDemand
from magi_world.offload.placement import Placement, place
from magi_world.offload.stream import WeightStream

__all__ = [
    "CopyLane",
    "DeviceRows",
    "HostRows",
    "KVRows",
    "OnDemand",
    "Placement",
    "WeightStream",
    "place",
    "stream_layers",
]
