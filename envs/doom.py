"""The real game behind `doom-take-cover`: ViZDoom's Take Cover, played chunk by chunk.

A chunk is four tics under one action, and every tic gives one picture, so that the chunks of the
game and the chunks of the dream have the same shape. The fatal tic gives no picture: the rest of
its chunk repeats the last real one, and `valid_frames` says how many are real. Nothing here knows
Gymnasium; `envs/real_env.py` is the environment, `training/collect.py` the collector.
"""

import contextlib
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.envs.game_calls import GameChunk, check_action, check_seed
from magi_world.errors import NotReset, missing_package

Frames = npt.NDArray[np.uint8]

SCREEN_HEIGHT, SCREEN_WIDTH = 240, 320
FRAME_SIZE = 64

# 240 rows become 64 by groups of fifteen: four rows of the result share them, 3.75 each. 320
# columns become 64 by groups of five, four of them a block, colours kept apart. Counted in quarters
# of a row all weights are whole numbers, so every sum is exact in float32, and no mean of 75 bytes
# lies half-way between two bytes: the result does not depend on the machine.
_ROWS, _BLOCK_ROWS = 15, 4
_COLUMNS, _BLOCK_COLUMNS = 5, 4
_WEIGHT_SUM = _ROWS * _COLUMNS


def _row_weights() -> npt.NDArray[np.float32]:
    """How many quarters of each of fifteen rows fall into each of four rows, float32 [4, 15]."""
    quarters = np.arange(_ROWS * _BLOCK_ROWS)
    weights = np.zeros((_BLOCK_ROWS, _ROWS), np.float32)
    np.add.at(weights, (quarters // _ROWS, quarters // _BLOCK_ROWS), 1.0)
    return weights


def _column_weights() -> npt.NDArray[np.float32]:
    """Which of twenty RGB columns, flattened, add up to which of four, float32 [60, 12]."""
    groups = np.repeat(np.eye(_BLOCK_COLUMNS, dtype=np.float32), _COLUMNS, axis=0)
    return np.kron(groups, np.eye(3, dtype=np.float32))


_ROW_WEIGHTS = _row_weights()
_COLUMN_WEIGHTS = _column_weights()


def downscale(screen: Frames) -> Frames:
    """Shrink one screen of the game to one frame by exact area averaging.

    Takes uint8 `[240, 320, 3]`, returns uint8 `[64, 64, 3]`: each byte is the mean of the 3.75 x 5
    pixels under it, rounded to the nearest. Collecting, resets and playing all go through here.
    """
    if screen.shape != (SCREEN_HEIGHT, SCREEN_WIDTH, 3) or screen.dtype != np.uint8:
        raise ValueError(
            f"a screen is uint8 [{SCREEN_HEIGHT}, {SCREEN_WIDTH}, 3], "
            f"got {screen.dtype} {list(screen.shape)}"
        )
    pixels = screen.reshape(-1, _ROWS, SCREEN_WIDTH * 3).astype(np.float32)
    rows = np.matmul(_ROW_WEIGHTS, pixels)
    total = rows.reshape(-1, len(_COLUMN_WEIGHTS)) @ _COLUMN_WEIGHTS
    total *= np.float32(1 / _WEIGHT_SUM)
    total += np.float32(0.5)
    frame: Frames = total.astype(np.uint8).reshape(FRAME_SIZE, FRAME_SIZE, 3)
    return frame


def _start(game: Any) -> None:
    """Start the engine; it makes an empty folder in the working directory, which goes again."""
    litter = Path("_vizdoom")
    was_there = litter.exists()
    game.init()
    if not was_there:
        with contextlib.suppress(OSError):
            litter.rmdir()


def _shut_down(game: Any, folder: tempfile.TemporaryDirectory[str]) -> None:
    """End the engine, then remove the folder into which it writes its settings at the end."""
    game.close()
    folder.cleanup()


class TakeCoverGame:
    """ViZDoom's Take Cover in chunks of four tics: survive fireballs by stepping left or right.

    The engine runs headless in a process of its own, started by the first `reset`; `close` ends it.
    One game can be reset any number of times, and the same seed and actions give the same episode.
    """

    name = "doom-take-cover"
    prompts = ["stand still", "strafe left", "strafe right"]
    chunk_frames = 4
    frame_shape = (FRAME_SIZE, FRAME_SIZE, 3)
    fps = 35
    max_tics = 2100

    _buttons = ([0, 0], [1, 0], [0, 1])  # MOVE_LEFT, MOVE_RIGHT, in the order of `prompts`

    def __init__(self) -> None:
        try:
            import vizdoom
        except ImportError as error:
            raise missing_package("vizdoom", "doom", "the real Take Cover") from error
        self._health = vizdoom.GameVariable.HEALTH
        game = vizdoom.DoomGame()
        game.load_config(str(Path(vizdoom.scenarios_path) / "take_cover.cfg"))
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_render_hud(False)
        game.set_render_screen_flashes(False)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.set_episode_timeout(0)  # the limit is counted here, where its chunk still has frames
        # The engine writes its settings into the working directory unless it is given another.
        folder = tempfile.TemporaryDirectory(prefix="magi-world-doom-")
        game.set_doom_config_path(str(Path(folder.name) / "vizdoom.ini"))
        self._game: Any = game
        self._shut_down = weakref.finalize(self, _shut_down, game, folder)
        self._tics = 0
        self._last_frame: Frames | None = None
        self._over = True

    def reset(self, seed: int) -> GameChunk:
        """Start the episode of `seed` (0 to 2^32 - 1) and play one chunk of the no-op.

        That chunk is the first observation; it counts neither for the reward nor for the limit.
        """
        check_seed(seed)
        self._game.set_seed(seed)
        if not self._shut_down.alive:
            raise NotReset("the game is closed: make a new one")
        if self._game.is_running():
            self._game.new_episode()
        else:
            _start(self._game)
        self._last_frame = downscale(self._game.get_state().screen_buffer)
        self._tics = -self.chunk_frames
        return self._play(0)

    def step(self, action: int) -> GameChunk:
        """Play four tics under the action `prompts[action]`.

        Raises `ActionError` for an index outside the list, `NotReset` before the first reset and
        after the end of an episode.
        """
        check_action(action, self.prompts, over=self._over)
        return self._play(action)

    def close(self) -> None:
        """End the engine's process; calling it again does nothing."""
        self._over = True
        self._shut_down()

    def _play(self, action: int) -> GameChunk:
        last = self._last_frame
        assert last is not None
        frames = np.empty((self.chunk_frames, FRAME_SIZE, FRAME_SIZE, 3), np.uint8)
        valid = 0
        while valid < self.chunk_frames:
            self._game.make_action(self._buttons[action], 1)
            if self._game.is_episode_finished():
                break
            last = downscale(self._game.get_state().screen_buffer)
            frames[valid] = last
            valid += 1
        frames[valid:] = last
        terminated = valid < self.chunk_frames
        self._last_frame = last
        self._tics += valid
        truncated = not terminated and self._tics >= self.max_tics
        self._over = terminated or truncated
        health = 0.0 if terminated else float(self._game.get_game_variable(self._health))
        return GameChunk(frames, valid, float(valid), terminated, truncated, health)
