"""Where the parts of a world are when its device is too small for all of them at once."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from magi_world.errors import ConfigError
from magi_world.offload.layers import stream_layers
from magi_world.offload.modules import OnDemand
from magi_world.offload.stream import WeightStream
from magi_world.placement import check_place

if TYPE_CHECKING:
    from magi_world.world import World


@dataclass(frozen=True)
class Placement:
    """What was moved out of a world; the default is nothing."""

    vae: AbstractContextManager[Any] = nullcontext()
    """entered around every use of the VAE"""
    streams: tuple[WeightStream, ...] = ()
    """of the DiT's layers"""
    moved_out: bool = False

    def check_movable(self) -> None:
        """Refuse to move or cast a world whose weights lie in host memory.

        Raises:
            ConfigError: something was moved out.
        """
        if self.moved_out:
            raise ConfigError(
                "parts of this world were moved out of its device: it can be neither moved nor "
                "cast any more; load it again"
            )


def place(
    world: "World", device: str | torch.device, *, layers: bool = False, idle: bool = True
) -> "World":
    """Spread a world over a device and host memory; numbers stay the same.

    Load the world on the CPU, in the dtype wanted, then place it. The third way of saving memory,
    the KV cache in host memory, belongs to a rollout: `GenerateSettings(kv_on_host=True)`.

    Args:
        world: a world in host memory; changed in place.
        device: where it computes.
        layers: stream the layers of the DiT, two at a time on the device: for a model that is
            larger than the device.
        idle: VAE and text encoder are on the device only while they are used.

    Returns:
        The same world.

    Raises:
        ConfigError: no such device, or a world that was placed before.
    """
    world.placement.check_movable()
    check_place(device, None)
    device = torch.device(device)
    streams = stream_layers(world.dit, device) if layers else []
    if not layers:
        world.dit.to(device)
    vae = OnDemand(world.vae, device) if idle else nullcontext()
    if not idle:
        world.vae.to(device)
    if world.outcome is not None:
        world.outcome.to(device)
    if isinstance(world.text, nn.Module):
        world.text.to(device)  # of an embedded world: small, and used on every new prompt
    elif world.text is not None:
        world.text.move(device, "out" if idle else "keep")
    world.placement = Placement(vae, tuple(streams), moved_out=bool(streams) or idle)
    world.forget_captions()
    return world
