"""What a world looks like when somebody plays it for long: videos and strips, one a behaviour."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from magi_world.evaluation.clips import Integers
from magi_world.evaluation.dreaming import DreamSettings, new_rollout, prompts_of
from magi_world.evaluation.metrics import Frames
from magi_world.evaluation.strips import strip, write_png
from magi_world.evaluation.video import enlarge, write_mp4
from magi_world.world import World

SCALE = 4
"""video pixels a world's pixel"""
PICTURES = 20
"""pictures of a strip, evenly over the film"""


class Policy(Protocol):
    """Whoever plays; it reads `observations`, "frames" or "latent", and names a prompt's index."""

    @property
    def observations(self) -> str: ...

    def reset(self, n: int, seed: int | None = None) -> None: ...

    def act(self, observations: Any, /) -> Integers: ...


def film_behaviours(
    world: World,
    policies: Mapping[str, Policy],
    out: Path,
    settings: DreamSettings,
    *,
    seconds: float = 20.0,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Let each policy play one dream from the opening; write `dream_NAME.mp4` and `.png` into out.

    A film goes on where the world says that the episode is over, so that all have the same length:
    the fewest whole chunks that last `seconds`. `ended_at` are the chunks at which it said so. A
    strip shows the last frame of chunks at even distances, in two rows.

    Raises:
        MissingPackage: PyAV or Pillow is not installed.
    """
    chunks = math.ceil(seconds * world.config.fps / world.config.chunk_frames)
    every = max(1, chunks // PICTURES)
    result: dict[str, Any] = {}
    for name, policy in policies.items():
        pictures: list[Frames] = []
        ended: list[int] = []

        def film(policy: Policy = policy) -> Iterator[Frames]:
            for index, (frames, over) in enumerate(_play(world, policy, chunks, settings), start=1):
                if over:
                    ended.append(index)  # noqa: B023
                if index % every == 0:
                    pictures.append(frames[-1])  # noqa: B023
                yield from enlarge(frames, SCALE)

        video = out / f"dream_{name}.mp4"
        count = write_mp4(video, film(), world.config.fps)
        write_png(video.with_suffix(".png"), _strip(name, pictures[:PICTURES], every, world))
        result[name] = {
            "video": video.name,
            "strip": video.with_suffix(".png").name,
            "chunks": chunks,
            "frames": count,
            "ended_at": ended,
        }
        say(f"film of {name}: {count} frames")
    return result


def _strip(name: str, pictures: list[Frames], every: int, world: World) -> Frames:
    """Pictures of a film in two rows, each labelled with the time of its first and last one."""
    gap = every * world.config.chunk_frames / world.config.fps
    half = -(-len(pictures) // 2)
    pictures = pictures + [np.zeros_like(pictures[0])] * (2 * half - len(pictures))
    rows: list[tuple[str, Frames]] = []
    for first in (0, half):
        times = f"{(first + 1) * gap:.1f} to {(first + half) * gap:.1f} s"
        label = f"dream under {name}, {times} after the opening, a picture every {gap:.1f} s"
        rows.append((label, np.stack(pictures[first : first + half])))
    return strip(rows)


def _play(
    world: World, policy: Policy, chunks: int, settings: DreamSettings
) -> Iterator[tuple[Frames, bool]]:
    """Chunks uint8 `[F, H, W, 3]` of one slot after the opening, and whether each was an end."""
    names = prompts_of(world)
    rollout = new_rollout(world, settings, [settings.seed])
    chunk = rollout.reset()
    policy.reset(1, seed=settings.seed)
    for _ in range(chunks):
        seen = chunk.frames if policy.observations == "frames" else chunk.latents
        chunk = rollout.step([names[int(policy.act(seen)[0])]])
        yield chunk.frames[0].cpu().numpy(), bool(chunk.terminated[0])
