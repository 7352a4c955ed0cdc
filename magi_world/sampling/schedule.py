"""Which timestep, which chunks, which history: the rules of sampling as pure functions.

The numbers follow MAGI-1 (golden README sections 6.1, 6.2 and 6.4; paper sections 2 and 3). Nothing
here holds state or touches a network. :mod:`magi_world.sampling.pipeline` puts the rules together
into the control flow of a whole video.

Words: a *time index* k counts the denoising steps that a chunk has had, 0 (noise) to `num_steps`
(clean). Chunks are numbered from the start of the video, prefix chunks included. A *width* is a KV
range: how many chunks, itself included, a chunk may see.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from magi_world.errors import ConfigError

SHIFT = 3.0
"""shift of the published time grid"""

# The three steps inside each quarter of a 12-step grid: where they start, in sixteenths of the
# whole way, and how long each is in units of the shortest.
_SHORTCUTS: dict[str, tuple[tuple[int, int, int], tuple[float, float, float]]] = {
    "8,16,16": ((0, 2, 3), (2.0, 1.0, 1.0)),
    "16,16,8": ((0, 1, 2), (1.0, 1.0, 2.0)),
}
_SHORTCUT_STEPS = 12

_TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda u: u,
    "square": lambda u: u * u,
    "piecewise": lambda u: torch.where(u < 0.875, u * (0.5 / 0.875), 0.5 + (u - 0.875) * 4),
}


def time_grid(
    num_steps: int,
    *,
    shift: float = SHIFT,
    transform: str = "square",
    shortcut_mode: str = "8,16,16",
) -> list[float]:
    """Return the timesteps at which a chunk is evaluated, 0 = noise to 1 = clean.

    A uniform grid u on [0, 1] is mapped by ``transform`` and then bent by ``shift``:
    ``t = w*u / (1 + (w-1)*u)`` with ``w = 1/shift``, which spends more steps near the noise. The
    defaults are the published grid; ``shift=1`` leaves the transformed grid alone. All arithmetic
    is float32, because the published borders (0.3 above all) are compared after that rounding, so
    the last entry may be 1.0000001 (golden README section 6.1).

    Args:
        num_steps: denoising steps per chunk, 1 or more.
        shift: positive; above 1 more steps lie near the noise, below 1 near the clean end.
        transform: ``"square"``, ``"identity"`` or ``"piecewise"``.
        shortcut_mode: ``"8,16,16"`` or ``"16,16,8"``. With exactly 12 steps the grid is not uniform
            but has three steps in each quarter, of these fractions of the whole; else unused.

    Returns:
        `num_steps + 1` increasing float32 values, as Python floats; the first is 0.

    Raises:
        ConfigError: a value outside what is named above.
    """
    _require_positive("num_steps", num_steps)
    if not (math.isfinite(shift) and shift > 0):
        raise ConfigError(f"shift {shift} is not a positive number")
    if transform not in _TRANSFORMS:
        raise ConfigError(f"transform {transform!r} is unknown; known are {sorted(_TRANSFORMS)}")
    starts, _ = _shortcut(shortcut_mode)
    if num_steps == _SHORTCUT_STEPS:
        sixteenths = [4 * quarter + start for quarter in range(4) for start in starts]
        u = torch.tensor([*sixteenths, 16], dtype=torch.float32) / 16
    else:
        u = torch.linspace(0, 1, num_steps + 1, dtype=torch.float32)
    grid: list[float] = warp(u, shift=shift, transform=transform).tolist()
    return grid


def warp(u: Tensor, *, shift: float, transform: str) -> Tensor:
    """Map uniform values in [0, 1] to timesteps as :func:`time_grid` does; its arguments."""
    u = _TRANSFORMS[transform](u)
    w = 1 / shift
    return (w * u) / (1 + (w - 1) * u)


def time_grid_from_config(
    num_steps: int, t_schedule_config: Mapping[str, Any], *, shortcut_mode: str = "8,16,16"
) -> list[float]:
    """Return the grid that a published ``t_schedule_config`` describes.

    Args:
        num_steps: denoising steps per chunk.
        t_schedule_config: empty for the default grid; ``shift`` replaces 3; ``tSchedulerFunc``
            replaces square and shift by one map of u (``"square"``, ``"identity"``,
            ``"piecewise"``).
        shortcut_mode: see :func:`time_grid`.

    Raises:
        ConfigError: an unknown key or value.
    """
    unknown = sorted(set(t_schedule_config) - {"shift", "tSchedulerFunc"})
    if unknown:
        raise ConfigError(
            f"t_schedule_config has unknown keys {unknown}; known are ['shift', 'tSchedulerFunc']"
        )
    transform = t_schedule_config.get("tSchedulerFunc")
    if transform is not None:
        return time_grid(num_steps, shift=1.0, transform=transform, shortcut_mode=shortcut_mode)
    shift = float(t_schedule_config.get("shift", SHIFT))
    return time_grid(num_steps, shift=shift, shortcut_mode=shortcut_mode)


def step_sizes(grid: Sequence[float]) -> list[float]:
    """Return the Euler step of every time index, ``t[k+1] - t[k]`` rounded to float32."""
    sizes: list[float] = torch.tensor(grid, dtype=torch.float32).diff().tolist()
    return sizes


def step_intervals(num_steps: int, shortcut_mode: str = "8,16,16") -> list[float]:
    """Return the step intervals that distilled models are told (golden README section 6.1).

    Relative lengths: the repeated pattern of ``shortcut_mode`` when ``num_steps`` is a multiple of
    3, else all ones. Only 12-step sampling reads them.

    Raises:
        ConfigError: ``num_steps`` below 1 or an unknown ``shortcut_mode``.
    """
    _require_positive("num_steps", num_steps)
    _, pattern = _shortcut(shortcut_mode)
    return list(pattern) * (num_steps // 3) if num_steps % 3 == 0 else [1.0] * num_steps


class Stage(NamedTuple):
    """Chunks denoised together for one stretch of `num_steps // window` steps.

    The chunks are `first <= chunk < stop`; their noise stages (0 noisiest, `window - 1` cleanest)
    are `noise_first <= stage < noise_stop`, in reverse: the oldest chunk is the cleanest.
    """

    first: int
    stop: int
    noise_first: int
    noise_stop: int

    def time_indices(self, steps_per_stage: int, step: int) -> tuple[int, ...]:
        """Return the time index of each chunk, oldest first, at one step of the stage."""
        return tuple(
            noise * steps_per_stage + step
            for noise in reversed(range(self.noise_first, self.noise_stop))
        )


def stages(
    num_chunks: int | None,
    window: int,
    *,
    offset: int = 0,
    exists: Callable[[int], bool] | None = None,
) -> Iterator[Stage]:
    """Yield the stages in which a window moves over the chunks of a video.

    The window fills from the first chunk, moves on by one chunk a stage and drains at the end: each
    chunk passes through `window` stages (golden README section 6.2, paper section 2).

    Args:
        num_chunks: chunks of the video, 1 or more; None while nobody knows.
        window: chunks denoised together at most.
        offset: leading chunks that are given, not generated; fewer than ``num_chunks``.
        exists: with ``num_chunks`` None, asked in order whether there is a chunk of this number;
            the first "no" ends the video. Without it the video never ends.

    Raises:
        ConfigError: a value outside what is named above.
    """
    if num_chunks is not None:
        _require_positive("num_chunks", num_chunks)
        if not 0 <= offset < num_chunks:
            raise ConfigError(
                f"offset {offset} is outside 0..{num_chunks - 1}, the chunks of the clip"
            )
    _require_positive("window", window)
    newest, end = offset, num_chunks
    while end is None or newest < end + window - 1:
        if end is None and exists is not None and not exists(newest):
            end = newest
            if end == offset:
                return
            continue
        drained = 0 if end is None else max(0, newest - end + 1)
        yield Stage(
            first=max(offset, newest - window + 1),
            stop=newest + 1 - drained,
            noise_first=drained,
            noise_stop=min(window, newest - offset + 1),
        )
        newest += 1


def count_chunks(
    num_frames: int, *, chunk_width: int, prefix_latent_frames: int = 0, frames_per_latent: int = 4
) -> int:
    """Return the chunks of a video of ``num_frames`` new frames after a prefix.

    Rounded up, so a one-frame prefix adds a whole chunk (golden README sections 6.2 and 10.14).

    Raises:
        ConfigError: a negative number, no latent frame at all, or a size below 1.
    """
    _require_positive("chunk_width", chunk_width)
    _require_positive("frames_per_latent", frames_per_latent)
    if num_frames < 0 or prefix_latent_frames < 0:
        raise ConfigError(f"{num_frames} frames after {prefix_latent_frames}: negative")
    latent_frames = num_frames // frames_per_latent + prefix_latent_frames
    if latent_frames == 0:
        raise ConfigError(f"{num_frames} frames are less than one latent ({frames_per_latent})")
    return math.ceil(latent_frames / chunk_width)


def kv_width(time_index: int, num_steps: int, kv_ranges: Sequence[int]) -> int | None:
    """Return how many chunks a chunk sees at one of its denoising steps, itself included.

    The list has one width per equal part of the steps, noisiest first (``noise2clean_kvrange``,
    golden README section 6.4). None means all chunks from the first on: an empty list.

    Raises:
        ConfigError: a ``time_index`` outside the steps, or steps that the list does not divide.
    """
    check_kv_ranges(num_steps, kv_ranges)
    if not 0 <= time_index < num_steps:
        raise ConfigError(f"time index {time_index} is outside 0..{num_steps - 1}")
    return kv_ranges[time_index // (num_steps // len(kv_ranges))] if kv_ranges else None


def clean_kv_width(
    kv_ranges: Sequence[int], clean_kv_range: int, *, prefix: bool = False
) -> int | None:
    """Return how many chunks a clean chunk sees when it enters the cache, itself included.

    ``clean_kv_range`` -1 stands for the last of ``kv_ranges``. Without ``kv_ranges`` a generated
    chunk sees everything (None) whatever ``clean_kv_range`` says, and a prefix chunk with -1 sees 8
    (golden README section 6.4).

    Raises:
        ConfigError: ``clean_kv_range`` neither -1 nor positive.
    """
    if clean_kv_range != -1 and clean_kv_range < 1:
        raise ConfigError(f"clean_kv_range {clean_kv_range} is neither -1 nor positive")
    if not kv_ranges and not prefix:
        return None
    if clean_kv_range != -1:
        return clean_kv_range
    return kv_ranges[-1] if kv_ranges else 8


def kv_chunks(chunk: int, width: int | None) -> tuple[int, int]:
    """Return the chunks `first <= c < stop` that a chunk sees with a KV range of ``width``."""
    return (0 if width is None else max(0, chunk + 1 - width)), chunk + 1


def is_near_clean(t: float, threshold: float = 0.3) -> bool:
    """Whether a chunk counts as nearly clean.

    ``t`` is a float32 value and ``threshold`` a double: the border of the last quarter of the
    published grid, 0.30000001192, is above 0.3 (golden README section 10.11).
    """
    return t > threshold


def check_kv_ranges(num_steps: int, kv_ranges: Sequence[int]) -> None:
    """Refuse a list of KV ranges that some denoising step could not look up.

    Raises:
        ConfigError: a width that is no whole number from 1 on, or steps that the length of the
            list does not divide.
    """
    for width in kv_ranges:
        if not isinstance(width, int):
            raise ConfigError(f"KV range {width!r}: a whole number, 1 or more, is needed")
        _require_positive("KV range", width)
    if kv_ranges and num_steps % len(kv_ranges):
        raise ConfigError(
            f"num_steps {num_steps} is not a multiple of the {len(kv_ranges)} KV ranges "
            f"{list(kv_ranges)}; allowed are multiples of {len(kv_ranges)}"
        )


def check_window(num_steps: int, window: int) -> None:
    """Refuse a window that the steps cannot be cut into.

    Raises:
        ConfigError: the window does not divide the steps; the message lists those that do.
    """
    _require_positive("window", window)
    if num_steps % window:
        allowed = [size for size in range(1, num_steps + 1) if num_steps % size == 0]
        raise ConfigError(
            f"window {window} does not divide the {num_steps} steps, so no chunk would be "
            f"finished; allowed are {allowed}"
        )


def _shortcut(mode: str) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    if mode not in _SHORTCUTS:
        raise ConfigError(f"shortcut_mode {mode!r} is unknown; known are {sorted(_SHORTCUTS)}")
    return _SHORTCUTS[mode]


def _require_positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} {value} is below 1")
