"""Which chunks a video has and which of its frames leave with each of them.

As published, a video of an image has one chunk more than asked for, and the last chunk always
leaves whole (spec section 4.8). By default the frames are exactly those asked for: an image's four
frames count among them, and the last chunk is cut.
"""

import math
from dataclasses import dataclass

from magi_world.errors import ConfigError
from magi_world.sampling import schedule
from magi_world.sampling.captions import Compat


@dataclass(frozen=True, kw_only=True)
class VideoLayout:
    """The chunks of a video, numbered from its start, prefix included."""

    num_frames: int | None
    """new frames, an image's among them by default; None: nobody knows"""
    num_chunks: int | None
    """chunks, prefix included"""
    chunk_width: int
    """latent frames per chunk"""
    frames_per_latent: int
    prefix_latent_frames: int
    from_image: bool
    """the prefix is one image, which leaves with the first chunk"""
    compat: Compat

    @property
    def offset(self) -> int:
        """Chunks that the prefix fills completely."""
        return self.prefix_latent_frames // self.chunk_width

    @property
    def first_latent(self) -> int:
        """The first latent frame that leaves."""
        return 0 if self.from_image else self.prefix_latent_frames

    def latents(self, chunk: int) -> tuple[int, int]:
        """Latent frames of a chunk that leave, counted from the video's start."""
        first, stop = chunk * self.chunk_width, (chunk + 1) * self.chunk_width
        if self.num_frames is not None and self.compat is None:
            wanted = math.ceil(self.num_frames / self.frames_per_latent)
            stop = min(stop, self.first_latent + wanted)
        return max(first, self.first_latent), stop

    def frames(self, chunk: int) -> tuple[int, int]:
        """Frames of a chunk that leave, counted from the first frame that leaves.

        In compat mode the pieces are shorter by what the published decoder loses.
        """
        first, stop = (
            (latent - self.first_latent) * self.frames_per_latent for latent in self.latents(chunk)
        )
        if self.num_frames is not None and self.compat is None:
            stop = min(stop, self.num_frames)
        return first, stop

    def chunk_frames(self) -> list[tuple[int, int]]:
        """:meth:`frames` of every generated chunk.

        Raises:
            ConfigError: the number of chunks is not known.
        """
        if self.num_chunks is None:
            raise ConfigError("a video without end has no list of chunks: give num_frames")
        return [self.frames(chunk) for chunk in range(self.offset, self.num_chunks)]


def video_layout(
    num_frames: int | None,
    *,
    chunk_width: int,
    frames_per_latent: int = 4,
    prefix_latent_frames: int = 0,
    from_image: bool | None = None,
    num_generated: int | None = None,
    compat: Compat = None,
) -> VideoLayout:
    """Lay out a video.

    Args:
        num_frames: new frames; None: as many as ``num_generated`` chunks have, or nobody knows.
        chunk_width: latent frames per chunk.
        frames_per_latent: frames of a latent frame.
        prefix_latent_frames: given latent frames.
        from_image: the prefix is an image; None: it is if it is one latent frame, as published,
            and less than a chunk (one that fills a chunk is history like any other).
        num_generated: without ``num_frames``, generated chunks.
        compat: "magi-1" counts as published.

    Raises:
        ConfigError: no frame, or a prefix of several latent frames that is said to be an image.
    """
    begins_chunk = prefix_latent_frames == 1 and chunk_width > 1
    image = begins_chunk if from_image is None else from_image
    if image and not begins_chunk:
        raise ConfigError(
            f"an image is one latent frame and less than a chunk, the prefix has "
            f"{prefix_latent_frames} and a chunk {chunk_width}"
        )
    if compat is not None and begins_chunk and not image:
        raise ConfigError('compat="magi-1" takes a prefix of one latent frame as an image')
    if num_frames is not None and (not isinstance(num_frames, int) or num_frames < 1):
        raise ConfigError(f"num_frames {num_frames!r}: a whole number, 1 or more, is needed")
    num_chunks: int | None = None
    if num_frames is not None and compat is not None:
        num_chunks = schedule.count_chunks(
            num_frames,
            chunk_width=chunk_width,
            prefix_latent_frames=prefix_latent_frames,
            frames_per_latent=frames_per_latent,
        )
    elif num_frames is not None:
        latents = math.ceil(num_frames / frames_per_latent) + (0 if image else prefix_latent_frames)
        num_chunks = math.ceil(latents / chunk_width)
    elif num_generated is not None:
        num_chunks = prefix_latent_frames // chunk_width + num_generated
    return VideoLayout(
        num_frames=num_frames,
        num_chunks=num_chunks,
        chunk_width=chunk_width,
        frames_per_latent=frames_per_latent,
        prefix_latent_frames=prefix_latent_frames,
        from_image=image,
        compat=compat,
    )
