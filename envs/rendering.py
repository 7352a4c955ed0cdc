"""What `render` returns, ruled once for the dream and for the real game.

`rgb_array` is the last frame of the chunk, `rgb_array_list` every frame since the last call, and
`human` a window that shows each frame at the game's rate. Gymnasium's `save_video` takes the list
whole; its `RecordVideo` keeps one frame a step, so a video of its plays at the right speed with
`rgb_array`.
"""

import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium import logger
from gymnasium.error import ResetNeeded

from magi_world.envs.spaces import Frames
from magi_world.errors import missing_package

if TYPE_CHECKING:
    from types import ModuleType

RENDER_MODES = ("human", "rgb_array", "rgb_array_list")
WINDOW_SIDE = 512
"""Windows are the largest whole multiple of the frame that fits into this many pixels."""


def render_fps(mode: str | None, fps: float, chunk_frames: int) -> float:
    """Frames per second at which what `render` returns plays at the game's own speed.

    `fps` is the rate of the game. One frame a chunk, as "rgb_array" gives, plays at `fps /
    chunk_frames`; every other mode hands out all frames.
    """
    return fps / chunk_frames if mode == "rgb_array" else fps


class Renderer:
    """Keeps what `render` needs of the chunks of one environment.

    Chunks come in as callables that give uint8 frames `[F, H, W, 3]`: an environment that observes
    latents decodes a picture only when someone looks at it.

    Args:
        mode: one of `RENDER_MODES`, or None for no rendering.
        fps: frames per second of the game.
        title: title of the window.

    Raises:
        MissingPackage: "human" without pygame-ce.
    """

    def __init__(self, mode: str | None, *, fps: float, title: str) -> None:
        self.mode = mode
        self._pending: list[Callable[[], Frames]] = []
        self._begins = 0  # of them, where the running episode does
        self._last: Callable[[], Frames] | None = None
        self._window = Window(title, fps) if mode == "human" else None

    def add(
        self, frames: Callable[[], Frames], *, first: bool = False, at_once: bool = False
    ) -> None:
        """Take in the chunk of a reset (`first`) or of a step; "human" shows it at once.

        A reset drops what was not fetched before it, as Gymnasium's own frame lists do: the video
        of an episode never begins with an earlier one. One that comes `at_once`, in the step that
        ended the episode before, leaves that episode: nobody could have fetched its end.
        """
        if self.mode is None:
            return
        self._last = frames
        if self.mode == "rgb_array_list":
            if first:
                del self._pending[: self._begins if at_once else None]
                self._begins = len(self._pending)
            self._pending.append(frames)
        elif self._window is not None:
            self._window.show(frames())

    def forget(self) -> None:
        """Drop all chunks, as before the first reset; a window keeps its picture until then."""
        self._pending, self._begins = [], 0
        self._last = None

    def render(self) -> Frames | list[Frames] | None:
        """Return one frame `[H, W, 3]`, a list of them, or None, as the mode says.

        Raises:
            ResetNeeded: nothing has been added yet.
        """
        if self.mode is None:
            logger.warn(
                "render() without a render_mode returns None; "
                f"pass render_mode to the constructor, one of {list(RENDER_MODES)}"
            )
            return None
        if self._last is None:
            raise ResetNeeded("render() before the first reset(): there is no frame yet")
        if self.mode == "rgb_array_list":
            chunks, self._pending, self._begins = self._pending, [], 0
            return [frame.copy() for chunk in chunks for frame in chunk()]
        if self._window is not None:
            self._window.show(self._last()[-1:])
            return None
        last: Frames = self._last()[-1].copy()
        return last

    def close(self) -> None:
        """Close the window if there is one. Calling it again does nothing."""
        if self._window is not None:
            self._window.close()


class SlotRenderers:
    """A `Renderer` for each slot of a vector environment; "human" is one window for all of them.

    Args:
        mode, fps, title: as for `Renderer`.
        num_envs: slots.

    Raises:
        MissingPackage: "human" without pygame-ce.
    """

    def __init__(self, mode: str | None, num_envs: int, *, fps: float, title: str) -> None:
        self.mode = mode
        self._latest: list[Callable[[], Frames] | None] = [None] * num_envs
        count = 1 if mode == "human" else num_envs
        self._renderers = [Renderer(mode, fps=fps, title=title) for _ in range(count)]

    def add(
        self,
        frames: Callable[[], npt.NDArray[np.uint8]],
        rows: Mapping[int, int],
        *,
        first: bool = False,
        at_once: bool = False,
        whole: bool = True,
    ) -> None:
        """Take in chunks of some slots.

        Args:
            frames: gives uint8 `[n, F, H, W, 3]`, called only when someone looks.
            rows: the row of each slot that is given.
            first: the chunks are those of a reset.
            at_once: in the step that ended the episodes before, whose ends a window has shown.
            whole: a window shows the slots now; False waits for the rest of them.
        """
        if self.mode is None:
            return
        for slot, row in rows.items():
            self._latest[slot] = partial(_row, frames, row)
            if self.mode != "human":
                picture = partial(_row, frames, row)
                self._renderers[slot].add(picture, first=first, at_once=at_once)
        if self.mode == "human" and whole and not at_once:
            self._renderers[0].add(self._mosaic)

    def forget(self) -> None:
        """Drop all chunks; see `Renderer.forget`."""
        self._latest = [None] * len(self._latest)
        for renderer in self._renderers:
            renderer.forget()

    def _mosaic(self) -> Frames:
        """All slots in rows and columns, uint8 `[F, rows * H, columns * W, 3]`."""
        pictures = [latest() for latest in self._latest if latest is not None]
        columns = math.ceil(math.sqrt(len(pictures)))
        while len(pictures) % columns:
            pictures.append(np.zeros_like(pictures[0]))
        lines = [
            np.concatenate(pictures[start : start + columns], axis=2)
            for start in range(0, len(pictures), columns)
        ]
        return np.concatenate(lines, axis=1)

    def render(self) -> tuple[Any, ...] | None:
        """One entry a slot, see `Renderer.render`; None without a mode and for "human"."""
        if self.mode is None or self.mode == "human":
            self._renderers[0].render()
            return None
        return tuple(renderer.render() for renderer in self._renderers)

    def close(self) -> None:
        """Close the window if there is one."""
        for renderer in self._renderers:
            renderer.close()


def _row(frames: Callable[[], npt.NDArray[np.uint8]], row: int) -> Frames:
    picture: Frames = frames()[row]
    return picture


class Window:
    """A window of pygame-ce, opened by the first frames it shows."""

    def __init__(self, title: str, fps: float) -> None:
        self._pygame = _import_pygame()
        self._clock = self._pygame.time.Clock()
        self._window: Any = None
        self._title = title
        self._fps = fps

    def show(self, frames: npt.NDArray[np.uint8]) -> None:
        """Show frames uint8 `[n, H, W, 3]` one after the other, at the game's rate."""
        pygame = self._pygame
        height, width = frames.shape[1:3]
        scale = max(1, WINDOW_SIDE // max(height, width))
        size = (width * scale, height * scale)
        if self._window is None:
            pygame.display.init()
            self._window = pygame.Window(self._title, size)
        for frame in frames:
            picture = pygame.surfarray.make_surface(frame.swapaxes(0, 1))
            pygame.transform.scale(picture, size, self._window.get_surface())
            self._window.flip()
            pygame.event.pump()
            self._clock.tick(self._fps)

    def close(self) -> None:
        """Close the window; the next `show` opens a new one."""
        if self._window is not None:
            self._window.destroy()
            self._window = None


def _import_pygame() -> "ModuleType":
    # pygame greets on stdout, where the command line writes data only.
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError:
        raise missing_package("pygame-ce", "human", "render_mode 'human'") from None
    if not hasattr(pygame, "Window"):  # the older package pygame fills the same folder
        raise missing_package("pygame-ce", "human", "render_mode 'human'")
    return pygame
