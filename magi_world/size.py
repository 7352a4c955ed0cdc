"""Sizes of pictures as text: HEIGHTxWIDTH."""

import re

from magi_world.errors import ConfigError

_SIZE = re.compile(r"(\d+)[x×](\d+)")  # noqa: RUF001


def parse_size(size: str) -> tuple[int, int]:
    """Read "480x832" as height and width in pixels.

    Raises:
        ConfigError: another form, or zero pixels.
    """
    match = _SIZE.fullmatch(size.strip().lower()) if isinstance(size, str) else None
    if match is None or not all(int(side) for side in match.groups()):
        raise ConfigError(f"size {size!r}: HEIGHTxWIDTH in pixels is needed, such as 480x832")
    return int(match[1]), int(match[2])
