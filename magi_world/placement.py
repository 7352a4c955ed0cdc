"""Where a world runs and in what precision."""

import torch

from magi_world.errors import ConfigError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""what a DiT can compute in, by the names that users give"""


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
