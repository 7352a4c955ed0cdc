"""The worlds that ship with the package, one folder each."""

from importlib import resources
from pathlib import Path

from magi_world.checkpoints.world_format import CARD


def _root() -> Path:
    return Path(str(resources.files("magi_world.worlds")))


def available() -> list[str]:
    """Names of the embedded worlds."""
    return sorted(card.parent.name.replace("_", "-") for card in _root().glob(f"*/{CARD}"))


def folder(name: str) -> Path | None:
    """Folder of an embedded world, or None when there is none of that name."""
    path = _root() / name.replace("-", "_")
    return path if name in available() else None
