"""A game without an engine: a wall that moves with the action, and a fixed end for every seed."""

import numpy as np

from magi_world.envs import GameChunk

WALL = np.random.default_rng(0).integers(0, 256, (64, 16, 3), np.uint8).repeat(8, axis=1)
SHIFTS = (0, -1, 1)


class FakeGame:
    """Episodes of `28 + seed % 3` chunks after the reset chunk; even seeds end in death."""

    name = "tiny"
    prompts = ["stand still", "strafe left", "strafe right"]
    chunk_frames = 4
    frame_shape = (64, 64, 3)
    fps = 35

    def reset(self, seed: int) -> GameChunk:
        """Start the episode of a seed."""
        self._place, self._count, self._seed = seed % 64, 0, seed
        return self._chunk(0, 4, over=False)

    def step(self, action: int) -> GameChunk:
        """Play one chunk."""
        self._count += 1
        over = self._count == 28 + self._seed % 3
        dies = over and self._seed % 2 == 0
        return self._chunk(action, 2 if dies else 4, over=over)

    def close(self) -> None:
        """Nothing to end."""

    def _chunk(self, action: int, valid: int, *, over: bool) -> GameChunk:
        frames = np.empty((4, 64, 64, 3), np.uint8)
        for frame in range(4):
            if frame < valid:
                self._place += SHIFTS[action]
            frames[frame] = np.roll(WALL, self._place, axis=1)[:, :64]
        health = 0.0 if valid < 4 else 100.0 - 30 * (self._count >= 10)
        return GameChunk(frames, valid, float(valid), valid < 4, over and valid == 4, health)
