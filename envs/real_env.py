"""The real game behind a world as a Gymnasium environment: the dream's twin, with its spaces.

What an agent learnt in `envs/world_env.py` is scored here: same actions, same observations, same
chunks; the chunked adapter of the game draws them instead of the world.
"""

import math
import os
from pathlib import Path
from typing import Any

from gymnasium.error import ResetNeeded

from magi_world import worlds
from magi_world.checkpoints.world_format import CARD, read_card
from magi_world.config import WorldConfig
from magi_world.envs.arguments import check_agents, checked_seed
from magi_world.envs.game_calls import MAX_SEED
from magi_world.envs.games import ADAPTER, GAMES, check_fits, world_game
from magi_world.envs.single_env import SingleEnv
from magi_world.envs.spaces import (
    Action,
    Observation,
    as_index,
    as_prompt,
    observation,
)
from magi_world.errors import ActionError, ConfigError, ResetOptionError, WorldNotFound
from magi_world.players import chunk_prompts, chunk_wordings
from magi_world.training.collect import Game, GameChunk
from magi_world.world import load

__all__ = ["GAMES", "RealEnv"]


class RealEnv(SingleEnv):
    """The real game of one world: a step plays one chunk of it under one action.

    `reset` plays one chunk of the no-op, which is the first observation and counts in neither the
    length of the episode nor its return. The reward of a chunk is what the game gives for it: in
    Doom the number of tics survived. Where the episode ends the rest of the chunk repeats the last
    frame that the game drew. `info` holds `prompt` (the text of the action), `chunk` (chunks since
    the reset, 0 after it), `valid_frames` (how many frames of the chunk the game drew) and, in
    games that know it, `health` (the player's, 0 to 100).

    The game knows its own actions only. With text actions the space is the dream's, but a step
    takes just the card's prompts and their paraphrases, each standing for its action; any other
    text is refused, where the dream would show what it makes of it.

    `env.reset(seed=s)` plays the game's episode s; without a seed the next one is drawn from
    `env.np_random`.

    Args:
        world: name of an embedded world, or a folder; its card names the game, and gives prompts
            and sizes. Its weights are read for latents only.
        game: another name of the game, or an adapter of one's own, see `envs/games.py`; None is
            what the card names.
        actions: "text" or "discrete", an index into the card's prompts.
        observations: "frames", "latent" (encoded with the world's VAE) or "both".
        render_mode: "human", "rgb_array", "rgb_array_list" or None, see `envs/rendering.py`.
        horizon: chunks after the reset chunk at which an episode is truncated, at the latest where
            the game's own limit lies, which is what None means.
        device: where the world encodes, such as "cpu" or "cuda"; None chooses.
        dtype: such as "float32" or "bfloat16"; None chooses.

    Raises:
        ConfigError: a keyword whose value is not allowed, or a world that has no real game here.
        WorldNotFound: no world of that name or folder.
        MissingPackage: the game's package is absent, or pygame-ce for "human".
    """

    for_players = False
    """whether the game may have players; `envs/real_multi_env.py` knows what to do with them"""

    def __init__(
        self,
        world: str | os.PathLike[str] = "doom-take-cover",
        *,
        game: str | None = None,
        actions: str = "text",
        observations: str = "frames",
        render_mode: str | None = None,
        horizon: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        super().__init__(
            actions=actions, observations=observations, render_mode=render_mode, horizon=horizon
        )
        card = _read_card(world)
        check_agents(card, self.for_players)
        config = WorldConfig.from_dict(card["config"])
        if game is None and ADAPTER not in card and card["name"] not in GAMES:
            raise ConfigError(
                f"the world {card['name']!r} has no real game here; known are {sorted(GAMES)}, and "
                "game= takes an adapter"
            )
        self._make_game = world_game(card, game)
        self._game: Game | None = self._make_game()
        check_fits(self._game, card, config)
        self.world = (
            None if observations == "frames" else load(os.fspath(world), device=device, dtype=dtype)
        )
        self.card = card
        self._prompts = chunk_prompts(card)
        self._indices = _indices(card)
        self._lay_out(self._prompts, config, f"{card['name']} (real)")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode and return its first observation, one chunk of the no-op.

        Args:
            seed: the game's seed, 0 to 2^32 - 1; None draws one from `np_random`.
            options: None or empty. The game begins where it begins.

        Raises:
            ResetOptionError: any option.
            ConfigError: a seed that is too large.
        """
        if options:
            raise ResetOptionError(
                f"reset options {list(options)}: the real game has none, it begins at its start"
            )
        if seed is not None:  # a bad seed is refused before anything has changed
            seed = checked_seed(seed, MAX_SEED)
        super().reset(seed=seed)
        if seed is None:
            seed = int(self.np_random.integers(MAX_SEED, endpoint=True))
        if self._game is None:
            self._game = self._make_game()
        chunk = self._game.reset(seed)
        self._chunk = 0
        self._ended = None
        self._renderer.add(lambda: chunk.frames, first=True)
        return self._observe(chunk), self._info(chunk, self._prompts[0])

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Play one chunk under `action` and return what Gymnasium expects of a step.

        Raises:
            ResetNeeded: before the first reset, after the end of an episode or after `close`.
            PromptError: with text actions, what the action space does not contain.
            ActionError: an action that the game does not have.
        """
        if self._ended is not None or self._game is None:
            raise ResetNeeded(f"step() {self._ended}: call reset()")
        prompt, index = self._resolve(action)
        chunk = self._game.step(index)
        self._chunk += 1
        at_horizon = self.horizon is not None and self._chunk >= self.horizon
        truncated = chunk.truncated or at_horizon
        if chunk.terminated or truncated:
            self._ended = f"after the end of the episode, {self._chunk} chunks long"
        self._renderer.add(lambda: chunk.frames)
        info = self._info(chunk, prompt)
        return self._observe(chunk), self._reward(chunk), chunk.terminated, truncated, info

    def render(self) -> Any:
        """Return the last frame, all frames since the last call, or None, as `render_mode` says."""
        return self._renderer.render()

    def close(self) -> None:
        """End the game and close the window if there is one; a later reset starts them again."""
        self._renderer.close()
        if self._game is not None:
            self._game.close()
            self._game = None
            self._ended = "after close()"

    def _resolve(self, action: object) -> tuple[str, int]:
        """Return the prompt that was meant and the index of its action."""
        if self._actions == "discrete":
            index = as_index(action, self._prompts)
            return self._prompts[index], index
        prompt = as_prompt(action, self._max_length)
        if prompt not in self._indices:
            raise ActionError(
                f"prompt {prompt!r} is no action of the real game: it takes {self._prompts} "
                "and the paraphrases in the world's card"
            )
        return prompt, self._indices[prompt]

    def _reward(self, chunk: GameChunk) -> float:
        return float(chunk.reward)

    def _observe(self, chunk: GameChunk) -> Observation:
        world = self.world
        if world is None:
            return chunk.frames.copy()
        return observation(
            self._observations,
            lambda: chunk.frames,
            lambda: world.encode(chunk.frames[None])[0].cpu().numpy(),
        )

    def _info(self, chunk: GameChunk, prompt: str) -> dict[str, Any]:
        health = {} if math.isnan(chunk.health) else {"health": chunk.health}
        return {
            "prompt": prompt,
            "chunk": self._chunk,
            "valid_frames": chunk.valid_frames,
            **health,
        }


def _read_card(world: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the card of a world without its weights."""
    folder = worlds.folder(str(world)) or Path(world)
    if not (folder / CARD).is_file():
        raise WorldNotFound(
            f"no world {str(world)!r}: embedded are {', '.join(worlds.available()) or 'none'}; "
            f"a path must be a folder with {CARD}"
        )
    return read_card(folder)


def _indices(card: dict[str, Any]) -> dict[str, int]:
    """Index of the action of every prompt and paraphrase in a card."""
    indices: dict[str, int] = {}
    for key in ("paraphrases", "held_out_paraphrases"):
        for index, wordings in enumerate(chunk_wordings(card, key)):
            indices |= dict.fromkeys(wordings, index)
    return indices | {prompt: index for index, prompt in enumerate(chunk_prompts(card))}
