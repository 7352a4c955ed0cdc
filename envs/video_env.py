"""Any video model as a Gymnasium environment: a picture, a clip or a text, continued by prompts."""

import os
from collections.abc import Sequence
from typing import Any

from magi_world.envs.arguments import check_reset_options
from magi_world.envs.chunk_env import ChunkEnv
from magi_world.envs.reward import load_reward, rated
from magi_world.envs.spaces import Observation
from magi_world.errors import ConfigError, ResetOptionError
from magi_world.media.reading import read_image, read_video
from magi_world.sampling.chunk import Chunk
from magi_world.size import parse_size
from magi_world.world import load

NEUTRAL_PROMPT = "the scene goes on as before"
"""the one action of an environment that was given no prompt"""


class VideoEnv(ChunkEnv):
    """A video model without a game: a step conditions one chunk of video on a prompt.

    The first observation of an episode is the last chunk of its start: a picture held for one
    chunk, a clip, or a first chunk generated under a prompt. Start and actions are the
    constructor's; `reset(options=…)` may give another start for one episode. `info` holds `prompt`
    (the text that conditioned the chunk), `chunk` (chunks since the reset) and
    `termination_probability`.

    MAGI-1 checkpoints know no reward and no end: the reward is 0 unless `reward` names a function,
    and `horizon` alone ends an episode.

    Args:
        model: a checkpoint's folder, "hub:org/name", or a world's name.
        image: path of the picture that episodes start from.
        video: path of the clip that they start from; its last chunks are the history.
        prompt: text of a first chunk that is generated with no history; beside an image or a video
            it is only the default of `prompts`.
        prompts: the actions that the space samples and that `actions="discrete"` indexes, the
            no-op first; None is the constructor's prompt, without one `NEUTRAL_PROMPT`.
        size: frames as "HEIGHTxWIDTH"; None is the model's own size.
        reward: "module:function", called with the frames uint8 `[F, H, W, 3]` and the prompt of
            every step; it returns a number. None is the model's own reward.
        actions: "text", any prompt, or "discrete", an index into `prompts`.
        observations: "frames" (MAGI-1: 24 a chunk), "latent" or "both".
        render_mode: "human", "rgb_array", "rgb_array_list" or None, see `envs/rendering.py`.
        horizon: chunks after the reset chunk at which an episode is truncated; None is endless.
        steps: denoising steps per chunk; None takes the model's.
        temperature: scale of the initial noise.
        device: where the model runs, such as "cpu" or "cuda"; None as in `magi_world.load`.
        dtype: "float32" or "bfloat16"; None as in `magi_world.load`.

    Raises:
        ConfigError: a keyword whose value is not allowed, both an image and a video, or a
            `reward` that names no function.
        MediaError: an image or video that cannot be read.
        PromptError: a prompt that the model cannot use.
        WorldNotFound, CheckpointError: as `magi_world.load`.
        MissingPackage: "human" without pygame-ce, or a package that the model needs.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        image: str | os.PathLike[str] | None = None,
        video: str | os.PathLike[str] | None = None,
        prompt: str | None = None,
        prompts: Sequence[str] | None = None,
        size: str | None = None,
        reward: str | None = None,
        actions: str = "text",
        observations: str = "frames",
        render_mode: str | None = None,
        horizon: int | None = None,
        steps: int | None = None,
        temperature: float = 1.0,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        # What is wrong is said before the weights are read.
        super().__init__(
            actions=actions, observations=observations, render_mode=render_mode, horizon=horizon
        )
        if image is not None and video is not None:
            raise ConfigError("image and video: an episode starts from one of them")
        for name, value in (("image", image), ("video", video)):
            if value is not None and not isinstance(value, str | os.PathLike):
                raise ConfigError(
                    f"{name} is a {type(value).__name__}, a path is needed: arrays go through "
                    f"reset(options={{{name!r}: array}})"
                )
        if isinstance(prompts, str) or not isinstance(prompts, Sequence | None):
            raise ConfigError(f"prompts {prompts!r}: a list of different strings is needed")
        if prompts is None:
            prompts = [NEUTRAL_PROMPT if prompt is None else prompt]
        self._rating = None if reward is None else load_reward(reward)
        pixels = None if size is None else parse_size(size)

        world = load(os.fspath(model), device=device, dtype=dtype)
        world = world if pixels is None else world.resized(*pixels)
        self._open(world.rollout(1, steps=steps, temperature=temperature), prompts)
        for text in [*self.prompts, *([] if prompt is None else [prompt])]:
            world.check_prompt(text)
        config = world.config
        self._start: dict[str, Any] = {}
        if image is not None:
            self._start = {"image": read_image(os.fspath(image), config.height, config.width)}
        elif video is not None:
            self._start = {
                "video": read_video(os.fspath(video), config.height, config.width, config.fps)
            }
        elif prompt is not None:
            self._start = {"prompt": prompt}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode and return its first observation.

        Args:
            seed: 0 to 2^63 - 1, seeds the generator; without it the generator goes on where it
                was, and the first reset of all draws a seed from `np_random`.
            options: another start than the constructor's: at most one of `image` (uint8
                `[H, W, 3]`), `video` (uint8 `[T, H, W, 3]`) and `prompt`; beside `image` or
                `video` also `prompts`, the captions that its chunks had.

        Raises:
            ResetOptionError: neither the constructor nor the options name a start, an unknown
                option, two that exclude each other, or a wrong value.
            PromptError: a prompt among the options that cannot be used.
            ConfigError: a seed that is too large.

        A reset that is refused leaves the running episode as it was.
        """
        return super().reset(seed=seed, options=options)

    def _start_of(self, options: dict[str, Any] | None) -> dict[str, Any]:
        start = check_reset_options(options) or self._start
        if not start:
            raise ResetOptionError(
                "nothing to start from: make the environment with image=, video= or prompt=, or "
                "reset with one of them among the options"
            )
        return start

    def _reward(self, chunk: Chunk) -> float:
        if self._rating is None:
            return super()._reward(chunk)
        return rated(self._rating, chunk.frames[0].cpu().numpy(), str(chunk.prompts[0]))
