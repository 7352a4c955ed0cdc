"""Is there a place on the disk, and room? Asked before anything is made that takes long. And a file
that appears whole."""

import os
import shutil
from pathlib import Path

from magi_world.errors import ConfigError, MagiWorldError


def check_folder(path: Path, error: type[MagiWorldError] = ConfigError) -> None:
    """Refuse a folder in which nothing could be written.

    Args:
        path: the folder; it need not exist yet.
        error: class of the error.

    Raises:
        MagiWorldError: of the class `error`: the folder, or one above it, is a file or is not ours
            to write in.
    """
    place = _nearest(path)
    if not place.is_dir():
        raise error(f"{path} cannot be a folder: {place} is a file")
    if not os.access(place, os.W_OK):
        raise error(f"{path} cannot be written: {place} allows it to others only")


def check_disk(path: Path, needed: int, error: type[MagiWorldError] = ConfigError) -> str:
    """Refuse what the disk has no room for.

    Args:
        path: what will be written, a file or a folder; it need not exist yet.
        needed: bytes it will take.
        error: class of the error.

    Returns:
        A line that says how much is needed and how much is free, which is the error's, too.

    Raises:
        MagiWorldError: of the class `error`: fewer bytes are free.
    """
    free = shutil.disk_usage(_nearest(path)).free
    words = (
        f"{needed / 1e9:.2f} GB of disk needed under {path.absolute()}, {free / 1e9:.2f} GB free"
    )
    if free < needed:
        raise error(words)
    return words


def _nearest(path: Path) -> Path:
    """The path, or the nearest one above it that exists."""
    path = path.absolute()
    return next(parent for parent in (path, *path.parents) if parent.exists())


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, then rename it: it is there whole or as it was."""
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
