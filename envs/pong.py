"""The real game behind `pong-duel`: two-player Atari Pong, played chunk by chunk.

PettingZoo's `pong_v3` plays it with the ROM that ale-py brings. A chunk is four frames under one
action of each player. A player's actions hold FIRE as well (Atari's FIRE, RIGHTFIRE, LEFTFIRE), so
whoever has to serve does, and a game always comes to its end.

What is shown is the playing field without the score above it: 160x160 pixels, area-averaged to
64x64. Nothing here knows Gymnasium or PettingZoo's interface; `envs/multi_env.py` and its twin have
those.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from magi_world.envs.game_calls import check_action, check_seed
from magi_world.errors import NotReset, missing_package
from magi_world.players import chunk_prompts, split_actions

Frames = npt.NDArray[np.uint8]
Counts = npt.NDArray[np.int64]

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


class _PongChunks:
    """Chunks of four frames of a Pong, whoever plays it; a game begins where the ball is served.

    Until then all paddles are moved about, differently for every seed, because the game itself
    always begins alike. It ends when somebody has 21 points, or is cut off after 20,000 frames.
    """

    name: str
    prompts: list[str]
    num_paddles: int
    """those that are played from here"""
    chunk_frames = 4
    frame_shape = (FRAME_SIZE, FRAME_SIZE, 3)
    fps = 60
    max_frames = 20_000

    def __init__(self) -> None:
        self._frames_played = 0
        self._last_frame: Frames | None = None
        self._over = True
        self._closed = False

    def reset(self, seed: int) -> DuelChunk:
        """Start the game of `seed` (0 to 2^32 - 1), wait for the serve, play one no-op chunk.

        That chunk, the first with a ball, is the first observation; neither it nor what was before
        it counts for the reward or for the limit.
        """
        check_seed(seed)
        if self._closed:
            raise NotReset("the game is closed: make a new one")
        self._begin(seed)
        drawn = np.random.default_rng(seed).integers(
            len(CARD["prompts"]), size=(self.num_paddles, _FRAMES_TO_SERVE // 8)
        )
        resting = [0] * self.num_paddles
        for frame in range(_FRAMES_TO_SERVE):
            # they come to rest before the ball is there
            moving = frame + 8 < _FRAMES_TO_SERVE
            self._act(drawn[:, frame // 8].tolist() if moving else resting)
        self._last_frame = shrink_field(self._screen())
        self._frames_played = -self.chunk_frames
        self._over = False
        return self._play(resting)

    def step(self, action: int) -> DuelChunk:
        """Play four frames under the actions of all paddles that `prompts[action]` names.

        Raises `ActionError` for an index outside the list, `NotReset` before the first reset and
        after the end of a game.
        """
        check_action(action, self.prompts, over=self._over)
        own = split_actions(action, len(CARD["prompts"]), self.num_paddles)
        return self._play([int(index) for index in own])

    def _play(self, actions: Sequence[int]) -> DuelChunk:
        last = self._last_frame
        assert last is not None
        frames = np.empty((self.chunk_frames, *self.frame_shape), np.uint8)
        points, penalties = (np.zeros(self.num_paddles, np.int64) for _ in range(2))
        terminated, valid = False, 0
        while valid < self.chunk_frames and not terminated:
            won, fined, terminated = self._act(actions)
            points += won
            penalties += fined
            last = shrink_field(self._screen())
            frames[valid] = last
            valid += 1
        frames[valid:] = last
        self._last_frame = last
        self._frames_played += valid
        truncated = not terminated and self._frames_played >= self.max_frames
        self._over = terminated or truncated
        return DuelChunk(frames, valid, points.astype(np.float32), penalties, terminated, truncated)

    def _begin(self, seed: int) -> None:
        """Start the game."""
        raise NotImplementedError

    def _act(self, actions: Sequence[int]) -> tuple[Counts, Counts, bool]:
        """Play one frame: points and penalties of the paddles, and whether the game is over."""
        raise NotImplementedError

    def _screen(self) -> Frames:
        """What the game shows now, uint8 `[210, 160, 3]`."""
        raise NotImplementedError


class PongDuelGame(_PongChunks):
    """Two-player Pong in chunks of four frames: `first_0` is the right paddle, `second_0` the left.

    An action is one of `prompts`, which hold both players' actions; `magi_world.players` says how
    they are counted.
    """

    name = "pong-duel"
    players: list[str] = CARD["players"]
    player_prompts: list[str] = CARD["prompts"]
    prompts = chunk_prompts(CARD)
    num_paddles = 2
    objects: dict[str, Any] = CARD["objects"]

    def __init__(self) -> None:
        super().__init__()
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

    def close(self) -> None:
        """Forget the game; calling it again does nothing."""
        self._over = self._closed = True

    def _begin(self, seed: int) -> None:
        self._game.reset(seed=seed)

    def _act(self, actions: Sequence[int]) -> tuple[Counts, Counts, bool]:
        chosen = {p: ATARI_ACTIONS[a] for p, a in zip(self.players, actions, strict=True)}
        _, rewards, terminations, _, _ = self._game.step(chosen)
        got = np.array([rewards.get(player, 0) for player in self.players], np.int64)
        nothing = np.zeros_like(got)
        # what one wins the other loses; a point lost for not serving nobody wins
        won, fined = (got, nothing) if got.sum() == 0 else (nothing, -got)
        return won, fined, any(terminations.values())

    def _screen(self) -> Frames:
        screen: Frames = self._game.ale.getScreenRGB()
        return screen


_FRAMES_TO_SERVE = 56  # with FIRE held by both, whatever their paddles do


class AtariPongGame(_PongChunks):
    """Pong against the opponent that is built into it: `ALE/Pong-v5`, in the same chunks.

    The player is the right paddle, like `first_0` of `PongDuelGame`; its actions are one player's
    prompts, frames come through the same function, every frame of the game is played once
    (frameskip 1) under the action that was given (repeat probability 0).
    """

    name = "pong-atari"
    prompts: list[str] = CARD["prompts"]
    num_paddles = 1

    def __init__(self) -> None:
        super().__init__()
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
        self._shown: Frames | None = None

    def close(self) -> None:
        """End the game; calling it again does nothing."""
        self._over = self._closed = True
        self._env.close()

    def _begin(self, seed: int) -> None:
        self._env.reset(seed=seed % 2**31)

    def _act(self, actions: Sequence[int]) -> tuple[Counts, Counts, bool]:
        self._shown, reward, over, _, _ = self._env.step(ATARI_ACTIONS[actions[0]])
        won = np.array([round(float(reward))], np.int64)
        return won, np.zeros_like(won), bool(over)

    def _screen(self) -> Frames:
        assert self._shown is not None
        return self._shown
