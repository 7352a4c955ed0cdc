"""What a rollout starts from: pictures, cut into chunks, or latents, and their prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from magi_world.config import WorldConfig
from magi_world.errors import ResetOptionError
from magi_world.sampling.arguments import as_latents


def history_chunks(
    config: WorldConfig,
    *,
    image: Any = None,
    video: Any = None,
    latents: Any = None,
    prompts: Sequence[str | None] | None = None,
) -> tuple[NDArray[np.uint8] | Tensor, list[str | None]]:
    """Check what a history is given as, one of three forms, and cut it into chunks.

    Returns:
        Frames uint8 `[m, F, H, W, 3]`, or the latents as a tensor, and m prompts.

    Raises:
        ResetOptionError: not such pictures or latents, or not one prompt a chunk.
    """
    if latents is None:
        return picture_chunks(config, image=image, video=video, prompts=prompts)
    given = checked_latents(config, latents)
    return given, history_prompts(prompts, "history", len(given))


def picture_chunks(
    config: WorldConfig,
    *,
    image: Any = None,
    video: Any = None,
    prompts: Sequence[str | None] | None = None,
) -> tuple[NDArray[np.uint8], list[str | None]]:
    """Check pictures and cut them into the chunks of a history.

    Args:
        config: of the world.
        image: uint8 `[H, W, 3]`, repeated to fill a chunk.
        video: uint8 `[T, H, W, 3]`, cropped at the front to whole chunks.
        prompts: one a chunk, None stands for "no prompt".

    Returns:
        Frames uint8 `[m, F, H, W, 3]` and m prompts.

    Raises:
        ResetOptionError: not such pictures, or not one prompt a chunk.
    """
    what = "image" if video is None else "video"
    try:
        frames = np.asarray(image if video is None else video)
    except (ValueError, TypeError) as error:  # ragged lists, tensors on another device
        raise ResetOptionError(f"{what} is no array of pixels: {error}") from None
    size = (config.height, config.width, 3)
    F = config.chunk_frames
    if frames.dtype != np.uint8 or frames.shape[-3:] != size or frames.ndim not in (3, 4):
        raise ResetOptionError(
            f"{what} is {frames.dtype} {frames.shape}: expected uint8 "
            f"{'' if what == 'image' else '[T, *]'}{size}"
        )
    if what == "image":
        if frames.ndim != 3:
            raise ResetOptionError(f"image has shape {frames.shape}: expected {size}")
        frames = np.repeat(frames[None], F, axis=0)
    elif frames.ndim != 4 or len(frames) < F:
        raise ResetOptionError(f"video {frames.shape} is shorter than one chunk of {F} frames")
    frames = frames[len(frames) % F :]
    chunks = frames.reshape(-1, F, *size)
    return chunks, history_prompts(prompts, what, len(chunks))


def history_prompts(
    prompts: Sequence[str | None] | None, what: str, chunks: int
) -> list[str | None]:
    """The captions of a history, one a chunk.

    Raises:
        ResetOptionError: they are no list, or not one a chunk.
    """
    if prompts is None:
        return [None] * chunks
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise ResetOptionError(f"prompts {prompts!r}: a list, one a chunk, is needed")
    if len(prompts) != chunks:
        raise ResetOptionError(f"{len(prompts)} prompts for a {what} of {chunks} chunks")
    return list(prompts)


def checked_latents(config: WorldConfig, latents: Any) -> Tensor:
    """The latents of a history as a tensor.

    Raises:
        ResetOptionError: they are not floating point `[m, C, P, h, w]` of this world, m at least 1.
    """
    given = as_latents(latents, ResetOptionError)
    shape = config.latent_shape
    if given.shape[1:] != shape or not len(given) or not given.is_floating_point():
        raise ResetOptionError(
            f"latents are {given.dtype} {tuple(given.shape)}: expected [m, *]{shape}"
        )
    return given
