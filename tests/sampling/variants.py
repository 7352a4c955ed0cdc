"""Worlds like a given one but for some of its sampling settings."""

import copy
from typing import Any

from magi_world.checkpoints.world_format import Bank
from magi_world.world import World


def variant(world: World, *, bank: Bank | None = None, **sampling: Any) -> World:
    """The same weights and prompts with other sampling settings or another bank."""
    card = copy.deepcopy(world.card)
    card["config"]["sampling"] |= sampling
    other = World(card, bank=world.bank if bank is None else bank)
    for name, module in other.modules().items():
        module.load_state_dict(world.modules()[name].state_dict())
    return other
