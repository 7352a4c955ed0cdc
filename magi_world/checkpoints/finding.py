"""From a name to a world's files: embedded, a folder in either layout, or on the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magi_world import worlds
from magi_world.checkpoints.hub import fetch, is_hub_name
from magi_world.checkpoints.magi1_format import Magi1Checkpoint, is_magi1
from magi_world.checkpoints.magi1_world import Magi1Parts, find_published, find_saved
from magi_world.checkpoints.world_format import CARD, is_magi1_card, read_card
from magi_world.errors import WorldNotFound


@dataclass(frozen=True)
class FoundWorld:
    """What is known of a world before its weights are read."""

    path: Path
    card: dict[str, Any]
    checkpoint: Magi1Checkpoint | None
    """the files of a MAGI-1 checkpoint, their headers read; None for every other world"""


def find_world(name: str, parts: Magi1Parts) -> FoundWorld:
    """Find a world and check what can be checked without reading its weights.

    Args:
        name: an embedded world's name; a folder with a `world.json`; a folder or configuration
            file in MAGI-1's published layout; or `hub:org/name[/folder][@revision]`.
        parts: where the parts of a MAGI-1 checkpoint are.

    Raises:
        WorldNotFound: nothing of that name.
        CheckpointError: a part is absent, truncated or damaged.
        ConfigError: a configuration that cannot work.
        MissingPackage: an extra that is needed to read it.
    """
    path = fetch(name) if is_hub_name(name) else worlds.folder(name) or Path(name)
    if (path / CARD).is_file():
        card = read_card(path)
        if not is_magi1_card(card):
            return FoundWorld(path, card, None)
        checkpoint, card = find_saved(path, card, parts)
    elif is_magi1(path):
        checkpoint, card = find_published(path, parts)
    else:
        raise WorldNotFound(
            f"no world {name!r}: embedded are {', '.join(worlds.available()) or 'none'}; "
            f"a path must be a folder with {CARD}, or one in MAGI-1's published layout"
        )
    return FoundWorld(path, card, checkpoint)
