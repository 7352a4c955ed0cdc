"""What of a report goes into a world's card, and how it gets there."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from magi_world.checkpoints.world_format import read_card, write_card
from magi_world.world import World

BULKY = frozenset({"phrases", "calibration", "confusion", "by_chunk", "films"})
"""tables that stay in the report and out of the card"""
OWN = ("sweep_period", "sweeps", "kv_ranges", "denoising_steps")
"""parts with a key of their own in the card, which a report without them leaves as it was"""


def finite(value: Any) -> Any:
    """Plain data that JSON can hold: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(entry) for entry in value]
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def card_entries(report: Mapping[str, Any]) -> dict[str, Any]:
    """What of a report goes into the card: its numbers without the long tables.

    Parts in `OWN` get keys of their own; a report without them leaves the card's. A report with
    nothing but tables leaves the card's other numbers.
    """
    own = {key: report[key] for key in OWN if key in report}
    if "reconstruction" not in report:
        return own
    return {"evaluation": _without(report, BULKY | {*OWN, "world"}), **own}


def _without(value: Any, names: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(entry, names) for key, entry in value.items() if key not in names}
    return value


def update_card(world: World, entries: Mapping[str, Any]) -> None:
    """Put entries into the card of a world and into its file, keeping every other key.

    The file is read again and replaced in one move. A world without a folder keeps them in memory.

    Raises:
        OSError: the folder cannot be written.
    """
    if world.folder is not None:
        write_card(world.folder, {**read_card(world.folder), **entries})
    world.card.update(entries)
