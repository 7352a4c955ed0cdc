"""Where a world runs and in what precision."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from magi_world.errors import ConfigError

if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    # A forked child takes over the parent's pool of threads without the threads: its first parallel
    # operation would wait for them forever, in `AsyncVectorEnv` over any environment of this
    # package. One thread needs no pool; a child may ask for more.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""what a DiT can compute in, by the names that users give"""


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Build modules as worlds store them, whatever dtype torch was told to take by itself."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def check_place(device: str | torch.device | None, dtype: str | None) -> None:
    """Refuse a dtype or device that cannot be used.

    Raises:
        ConfigError: another dtype, or a device that is not there.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f"dtype {dtype!r} is not one of {sorted(DTYPES)}")
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # torch built without it: an assertion
            # of a backend that was not built in, torch goes on to list all others in the same line
            reason = str(error).splitlines()[0].partition(". ")[0]
            raise ConfigError(f"device {str(device)!r} cannot be used: {reason}") from None
