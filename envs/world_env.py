"""A generated world as a Gymnasium environment: one slot of a rollout, adapted and nothing more."""

import os

from magi_world.envs.arguments import check_agents, check_flag
from magi_world.envs.chunk_env import ChunkEnv
from magi_world.players import chunk_prompts
from magi_world.sampling.rollout import Starts
from magi_world.world import load


class WorldEnv(ChunkEnv):
    """One generated world: a step conditions one chunk of video on a prompt.

    The observation is the chunk: its frames, its latents, or both. `reset` shows the last chunk of
    an opening; that chunk counts in neither the length of the episode nor its return. `info` holds
    `prompt` (the text that conditioned the chunk), `chunk` (chunks since the reset, 0 after it),
    `termination_probability` and the extra signals of the world's card, all as plain values.

    Args:
        world: name of an embedded world, or a folder; text, for `env.spec` to fit into JSON.
        actions: "text", any prompt, or "discrete", an index into the card's prompts.
        observations: "frames", "latent" (nothing is decoded) or "both".
        render_mode: "human", "rgb_array", "rgb_array_list" or None, see `envs/rendering.py`.
        horizon: chunks after the reset chunk at which an episode is truncated; None takes the
            card's, and with a card that names none episodes are never truncated.
        steps: denoising steps per chunk; None takes the world's.
        temperature: scale of the initial noise.
        starts: "opening", or "any" to begin in clips from later in episodes too.
        ignore_termination: never report `terminated`; the horizon still truncates.
        device: where the world runs, such as "cpu" or "cuda"; None as in `magi_world.load`.
        dtype: "float32" or "bfloat16"; None as in `magi_world.load`.

    Raises:
        ConfigError: a keyword whose value is not allowed.
        WorldNotFound: no world of that name or folder.
        MissingPackage: "human" without pygame-ce.
    """

    for_players = False
    """whether the world may have players; only `envs/multi_env.py` knows what to do with them"""

    def __init__(
        self,
        world: str | os.PathLike[str],
        *,
        actions: str = "text",
        observations: str = "frames",
        render_mode: str | None = None,
        horizon: int | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
        starts: Starts = "opening",
        ignore_termination: bool = False,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        # What is wrong is said before the weights are read.
        super().__init__(
            actions=actions, observations=observations, render_mode=render_mode, horizon=horizon
        )
        self.ignore_termination = check_flag("ignore_termination", ignore_termination)
        loaded = load(os.fspath(world), device=device, dtype=dtype)
        rollout = loaded.rollout(1, steps=steps, temperature=temperature, starts=starts)
        check_agents(loaded.card, self.for_players)
        if horizon is None:
            self.horizon = loaded.card.get("horizon")
        self._open(rollout, chunk_prompts(loaded.card))
