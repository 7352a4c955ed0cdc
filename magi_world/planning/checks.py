"""Checks of disk, memory and packages before hours of work."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

from magi_world.disk import check_disk
from magi_world.errors import ConfigError, MediaError, missing_package

_BYTES_PER_PIXEL = 0.5  # of an H.264 file at high quality; noise takes more, real pictures a tenth


def check_packages(packages: Sequence[str], extra: str, purpose: str) -> None:
    """Refuse to begin without packages that will be needed later; none is imported.

    Args:
        packages: names of modules.
        extra: the extra that brings them.
        purpose: what they are for.

    Raises:
        MissingPackage: the first that is absent.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            named = "beautifulsoup4" if package == "bs4" else package
            raise missing_package(named, extra, purpose)


def check_video_disk(path: Path, *, frames: int, height: int, width: int) -> None:
    """Refuse to begin a video that the disk has no room for.

    Raises:
        MediaError: how much is needed and how much there is.
    """
    check_disk(path, int(frames * height * width * _BYTES_PER_PIXEL), MediaError)


def available_bytes(device: torch.device) -> int | None:
    """Memory that a device has left: of the machine for a CPU; None where nobody knows."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def check_memory(needed: int, device: torch.device, what: str) -> None:
    """Refuse to begin what a device has no room for.

    Args:
        needed: bytes.
        device: where.
        what: the parts that are needed, for the message.

    Raises:
        ConfigError: how much is needed and how much there is.
    """
    free = available_bytes(device)
    if free is not None and needed > free:
        raise ConfigError(
            f"{what} take {needed / 2**30:.1f} GiB, {device} has {free / 2**30:.1f} GiB left: "
            "choose a smaller --size or --window, or move parts out with --offload"
        )
