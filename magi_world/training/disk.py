"""Say how much disk something takes before it is made, and refuse where there is too little."""

import shutil
from pathlib import Path

from rich.console import Console

from magi_world.errors import DatasetError


def check_disk(folder: Path, needed: int, console: Console) -> None:
    """Print the bytes needed under a folder, which need not exist yet, beside those that are free.

    Raises:
        DatasetError: fewer are free.
    """
    folder = folder.absolute()
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    words = f"{needed / 1e9:.2f} GB of disk needed under {folder}, {free / 1e9:.2f} GB free"
    console.print(words, soft_wrap=True)
    if free < needed:
        raise DatasetError(words)
