"""Tiny random checkpoints in MAGI-1's published layout."""

import json
from pathlib import Path
from typing import Any

from magi_world.checkpoints.magi1_world import Magi1Parts
from magi_world.checkpoints.random_presets import random_preset

UNCACHED = Magi1Parts(prompt_cache=None)
"""prompts are encoded anew, nothing is written to the user's cache"""


def write_official(folder: Path, preset: str = "tiny", **options: Any) -> Path:
    """Write a tiny checkpoint and return its folder."""
    random_preset(preset).write(folder, **options)
    return folder


def edit_config(folder: Path, section: str, **changes: Any) -> None:
    """Change fields of a section; the value None removes one."""
    path = folder / "config.json"
    document = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            document[section].pop(name)
        else:
            document[section][name] = value
    path.write_text(json.dumps(document))
