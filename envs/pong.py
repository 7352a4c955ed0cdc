"""The real game behind `pong-duel`: two-player Atari Pong, played chunk by chunk.

PettingZoo's `pong_v3` plays it with the ROM that ale-py brings. A chunk is four frames under one
action of each player. A player's actions hold FIRE as well (Atari's FIRE, RIGHTFIRE, LEFTFIRE), so
whoever has to serve does, and a game always comes to its end.

What is shown is the playing field without the score above it: 160x160 pixels, area-averaged to
64x64. Nothing here knows Gymnasium or PettingZoo's interface; `envs/multi_env.py` has those.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.envs.doom import MAX_SEED
from magi_world.errors import ActionError, NotReset, missing_package
from magi_world.players import chunk_prompts, split_actions

Frames = npt.NDArray[np.uint8]

FRAME_SIZE = 64
FIELD_TOP, FIELD_SIZE = 34, 160  # rows of the screen between the white borders, all columns
CARD: dict[str, Any] = {
    "players": ["first_0", "second_0"],
    "prompts": ["stay", "up", "down"],
    "template": "left: {second_0}; right: {first_0}",
    "sides": {"first_0": "right", "second_0": "left"},
    "objects": {
        "background": [144, 72, 17],
        "ball": {"colour": [236, 236, 236], "height": 1.6, "width": 0.8},
        "first_0": {"colour": [92, 186, 92], "height": 6.4, "width": 1.6},
        "second_0": {"colour": [213, 130, 74], "height": 6.4, "width": 1.6},
    },
}
"""What the card of a world says about this game: its players, and the colours of what moves."""
ATARI_ACTIONS = (1, 4, 5)
"""The action of `pong_v3` behind each of a player's prompts, for both players."""

# 160 pixels become 64 by groups of five: two of the result share them, 2.5 each. Counted in halves
# the weights are whole numbers, so every sum is exact in float32; a block of 2.5 x 2.5 pixels holds
# 25 quarters, and no mean of bytes so weighted lies half-way between two bytes.
_GROUP, _BLOCK = 5, 2
_WEIGHTS = np.array([[2, 0], [2, 0], [1, 1], [0, 2], [0, 2]], np.float32)
_WEIGHT_SUM = 25


def shrink_field(screen: Frames) -> Frames:
    """Cut the playing field out of a screen and shrink it by exact area averaging.

    Takes uint8 `[210, 160, 3]`, returns uint8 `[64, 64, 3]`: each byte is the mean of the 2.5 x 2.5
    pixels under it, rounded to the nearest. Collecting, resets and playing all go through here.
    """
    if screen.shape != (210, 160, 3) or screen.dtype != np.uint8:
        raise ValueError(
            f"a screen is uint8 [210, 160, 3], got {screen.dtype} {list(screen.shape)}"
        )
    field = screen[FIELD_TOP : FIELD_TOP + FIELD_SIZE].astype(np.float32)
    groups = field.reshape(FIELD_SIZE // _GROUP, _GROUP, FIELD_SIZE // _GROUP, _GROUP, 3)
    total = np.einsum("agbhc,gi,hj->aibjc", groups, _WEIGHTS, _WEIGHTS, optimize=True)
    frame: Frames = (total / _WEIGHT_SUM + 0.5).astype(np.uint8)
    return np.ascontiguousarray(frame.reshape(FRAME_SIZE, FRAME_SIZE, 3))


@dataclass(frozen=True)
class DuelChunk:
    """What one chunk of the real game gave.

    `frames` is uint8 `[4, 64, 64, 3]`; `valid_frames` (0 to 4) counts those of them that the game
    drew, the rest repeat the last one; `reward` float32 `[2]` is what each player won (1) or lost
    (-1) in it, in the order of the players; `penalties` int64 `[2]` counts points lost for not
    serving, which nobody wins and which are no part of the reward; `health` is not known (NaN).
    """

    frames: Frames
    valid_frames: int
    reward: npt.NDArray[np.float32]
    penalties: npt.NDArray[np.int64]
    terminated: bool
    truncated: bool
    health: float = float("nan")


class PongDuelGame:
    """Two-player Pong in chunks of four frames: `first_0` is the right paddle, `second_0` the left.

    An action is one of `prompts`, which hold both players' actions; `magi_world.players` says how
    they are counted. The game of a seed begins where the ball is served first: until then both
    paddles are moved about, differently for every seed, because the game itself always begins
    alike. It ends when somebody has 21 points, or is cut off after 20,000 frames.
    """

    name = "pong-duel"
    players: list[str] = CARD["players"]
    player_prompts: list[str] = CARD["prompts"]
    prompts = chunk_prompts(CARD)
    objects: dict[str, Any] = CARD["objects"]
    chunk_frames = 4
    frame_shape = (FRAME_SIZE, FRAME_SIZE, 3)
    fps = 60
    max_frames = 20_000

    def __init__(self) -> None:
        try:
            import ale_py

            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # pygame asks setuptools
                from pettingzoo.atari import pong_v3
        except ImportError as error:
            raise missing_package("multi-agent-ale-py", "atari", "the real Pong") from error
        roms = Path(ale_py.__file__).parent / "roms"
        env = pong_v3.raw_env(auto_rom_install_path=str(roms), max_cycles=2**62)
        self._game: Any = env.unwrapped  # below the turns that PettingZoo puts on top
        self._frames_played = 0
        self._last_frame: Frames | None = None
        self._over = True
        self._closed = False

    def reset(self, seed: int) -> DuelChunk:
        """Start the game of `seed` (0 to 2^32 - 1), wait for the serve, play one no-op chunk.

        That chunk, the first with a ball, is the first observation; neither it nor what was before
        it counts for the reward or for the limit.
        """
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"a seed of the game is a number from 0 to {MAX_SEED}, got {seed}")
        if self._closed:
            raise NotReset("the game is closed: make a new one")
        self._game.reset(seed=seed)
        self._wait_for_serve(np.random.default_rng(seed))
        self._frames_played = -self.chunk_frames
        self._over = False
        return self._play((0, 0))

    def step(self, action: int) -> DuelChunk:
        """Play four frames under the actions of both players that `prompts[action]` names.

        Raises `ActionError` for an index outside the list, `NotReset` before the first reset and
        after the end of a game.
        """
        if not 0 <= action < len(self.prompts):
            raise ActionError(
                f"action {action!r} is not one of 0 to {len(self.prompts) - 1} ({self.prompts})"
            )
        if self._over:
            raise NotReset("the game has no running episode: call reset first")
        first, second = split_actions(action, len(self.player_prompts), len(self.players))
        return self._play((int(first), int(second)))

    def close(self) -> None:
        """Forget the game; calling it again does nothing."""
        self._over = self._closed = True

    def _wait_for_serve(self, rng: np.random.Generator) -> None:
        """Let both paddles wander until the frame before the ball is there."""
        moves = rng.integers(len(self.player_prompts), size=(2, _FRAMES_TO_SERVE // 8))
        for frame in range(_FRAMES_TO_SERVE):
            if frame + 8 < _FRAMES_TO_SERVE:  # then they come to rest
                chosen = (int(moves[0, frame // 8]), int(moves[1, frame // 8]))
            else:
                chosen = (0, 0)
            self._act(chosen)
        self._last_frame = shrink_field(self._game.ale.getScreenRGB())

    def _act(self, actions: tuple[int, int]) -> tuple[npt.NDArray[np.int64], bool]:
        """One frame; returns what each player got and whether the game is over."""
        chosen = {p: ATARI_ACTIONS[a] for p, a in zip(self.players, actions, strict=True)}
        _, rewards, terminations, _, _ = self._game.step(chosen)
        got = np.array([rewards.get(player, 0) for player in self.players], np.int64)
        return got, any(terminations.values())

    def _play(self, actions: tuple[int, int]) -> DuelChunk:
        last = self._last_frame
        assert last is not None
        frames = np.empty((self.chunk_frames, *self.frame_shape), np.uint8)
        points, penalties = np.zeros(2, np.int64), np.zeros(2, np.int64)
        terminated, valid = False, 0
        while valid < self.chunk_frames and not terminated:
            got, terminated = self._act(actions)
            if got.sum() == 0:
                points += got
            else:
                penalties -= got
            last = shrink_field(self._game.ale.getScreenRGB())
            frames[valid] = last
            valid += 1
        frames[valid:] = last
        self._last_frame = last
        self._frames_played += valid
        truncated = not terminated and self._frames_played >= self.max_frames
        self._over = terminated or truncated
        return DuelChunk(frames, valid, points.astype(np.float32), penalties, terminated, truncated)


_FRAMES_TO_SERVE = 56  # with FIRE held by both, whatever their paddles do


class AtariPongGame:
    """Pong against the opponent that is built into it: `ALE/Pong-v5`, in the same chunks.

    The player is the right paddle, like `first_0` of `PongDuelGame`; its actions are one player's
    prompts, frames come through the same function, every frame of the game is played once
    (frameskip 1) under the action that was given (repeat probability 0). It begins where the ball
    is served first and ends at 21 points or after 20,000 frames.
    """

    name = "pong-atari"
    prompts: list[str] = CARD["prompts"]
    chunk_frames = 4
    frame_shape = (FRAME_SIZE, FRAME_SIZE, 3)
    fps = 60
    max_frames = 20_000

    def __init__(self) -> None:
        try:
            import ale_py
            import gymnasium
        except ImportError as error:
            raise missing_package(
                "ale-py", "atari", "Pong against its built-in opponent"
            ) from error
        gymnasium.register_envs(ale_py)
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._env: Any = gymnasium.make(
            "ALE/Pong-v5",
            frameskip=1,
            repeat_action_probability=0.0,
            max_episode_steps=10**9,
            disable_env_checker=True,
        )
        self._frames_played = 0
        self._last_frame: Frames | None = None
        self._over = True

    def reset(self, seed: int) -> DuelChunk:
        """Start the game of `seed`, wait for the serve with a wandering paddle, play one no-op."""
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"a seed of the game is a number from 0 to {MAX_SEED}, got {seed}")
        self._env.reset(seed=seed % 2**31)
        moves = np.random.default_rng(seed).integers(len(self.prompts), size=_FRAMES_TO_SERVE // 8)
        for frame in range(_FRAMES_TO_SERVE):
            resting = frame + 8 >= _FRAMES_TO_SERVE
            screen = self._env.step(ATARI_ACTIONS[0 if resting else int(moves[frame // 8])])[0]
        self._last_frame = shrink_field(screen)
        self._frames_played = -self.chunk_frames
        self._over = False
        return self._play(0)

    def step(self, action: int) -> DuelChunk:
        """Play four frames; raises as `PongDuelGame.step` does."""
        if not 0 <= action < len(self.prompts):
            raise ActionError(
                f"action {action!r} is not one of 0 to {len(self.prompts) - 1} ({self.prompts})"
            )
        if self._over:
            raise NotReset("the game has no running episode: call reset first")
        return self._play(action)

    def close(self) -> None:
        """End the game; calling it again does nothing."""
        self._over = True
        self._env.close()

    def _play(self, action: int) -> DuelChunk:
        last = self._last_frame
        assert last is not None
        frames = np.empty((self.chunk_frames, *self.frame_shape), np.uint8)
        won, terminated, valid = 0.0, False, 0
        while valid < self.chunk_frames and not terminated:
            screen, reward, terminated, _, _ = self._env.step(ATARI_ACTIONS[action])
            won += float(reward)
            last = shrink_field(screen)
            frames[valid] = last
            valid += 1
        frames[valid:] = last
        self._last_frame = last
        self._frames_played += valid
        truncated = not terminated and self._frames_played >= self.max_frames
        self._over = terminated or truncated
        return DuelChunk(
            frames, valid, np.array([won], np.float32), np.zeros(1, np.int64), terminated, truncated
        )
