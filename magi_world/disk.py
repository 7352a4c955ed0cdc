"""Is there room on the disk? Asked before anything is made that is large."""

import shutil
from pathlib import Path

from magi_world.errors import ConfigError, MagiWorldError


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
    path = path.absolute()
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    words = f"{needed / 1e9:.2f} GB of disk needed under {path}, {free / 1e9:.2f} GB free"
    if free < needed:
        raise error(words)
    return words
