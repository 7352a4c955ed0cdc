"""The spaces of a world: actions as text or as an index, observations as frames, latents or both.

The dream and the real game build their spaces here, so that one agent runs in both. The functions
`as_prompt` and `as_index` are the validation of an action: `gymnasium.make`'s own checker lets
empty, overlong and wrongly typed actions pass.
"""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from magi_world.config import TextConfig, WorldConfig
from magi_world.errors import ActionError, ConfigError, PromptError

Frames = npt.NDArray[np.uint8]
Latents = npt.NDArray[np.float32]
Observation = Frames | Latents | dict[str, Frames | Latents]
Action = str | int | np.integer[Any]

ACTIONS = ("text", "discrete")
OBSERVATIONS = ("frames", "latent", "both")
LATENT_LIMIT = 100.0
"""Latent observations are clipped to plus and minus this: `check_env` warns of infinite bounds."""


@cache
def _printable_characters() -> tuple[str, ...]:
    """All printable characters of Unicode by code point, about 150,000; built when first asked."""
    return tuple(filter(str.isprintable, map(chr, range(sys.maxunicode + 1))))


@cache
def _printable_index() -> dict[str, np.int32]:
    return {c: np.int32(i) for i, c in enumerate(_printable_characters())}


class PromptSpace(spaces.Text):
    """Free text as an action: a string of 1 to `max_length` printable Unicode characters.

    Sampling draws one of the canonical prompts, uniformly and with the space's own generator: a
    random string of characters would mean nothing to a text encoder.

    Args:
        prompts: the canonical prompts, at least one, without duplicates.
        max_length: most characters (not bytes) of a member.
        seed: seed of the generator that `sample` uses.

    Raises:
        ConfigError: no prompts, a duplicate, or one that is not a member itself.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        max_length: int = 256,
        *,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        _check_listed(prompts, max_length)
        self.prompts = tuple(map(str, prompts))
        # The base class copies its character set into every space; the table of all printable
        # characters is shared instead, and built only if a client flattens the space.
        super().__init__(max_length, min_length=1, charset="".join(self.prompts), seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draw a canonical prompt.

        Args:
            mask: int8 `[n]`, one entry a prompt: 1 where the prompt may be drawn, 0 where not.
            probability: float64 `[n]`, the probability of each prompt; sums to 1.

        Raises:
            ValueError: both are given, or the one given has another form than described.
        """
        if mask is not None and probability is not None:
            raise ValueError(f"mask {mask!r} and probability {probability!r}: give one of them")
        if mask is not None:
            weights = self._weights("mask", mask, np.dtype(np.int8))
            if not np.isin(weights, (0, 1)).all() or not weights.any():
                raise ValueError(f"mask {mask!r}: zeros and ones, at least one 1")
            weights = weights / weights.sum()
        elif probability is not None:
            weights = self._weights("probability", probability, np.dtype(np.float64))
            if not (weights >= 0).all() or not np.isclose(weights.sum(), 1.0):
                raise ValueError(f"probability {probability!r}: not negative, and a sum of 1")
        else:
            return self.prompts[int(self.np_random.integers(len(self.prompts)))]
        return self.prompts[int(self.np_random.choice(len(self.prompts), p=weights))]

    def _weights(self, name: str, value: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        shape = (len(self.prompts),)
        if not isinstance(value, np.ndarray) or value.dtype != dtype or value.shape != shape:
            raise ValueError(f"{name} {value!r}: a {dtype} array of shape {shape} is needed")
        return value

    def contains(self, x: Any) -> bool:
        """Whether `x` is text of 1 to `max_length` printable Unicode characters."""
        return _prompt_problem(x, self.max_length) is None

    @property
    def character_set(self) -> frozenset[str]:
        """All printable characters."""
        return frozenset(_printable_characters())

    @property
    def character_list(self) -> tuple[str, ...]:
        """All printable characters, by code point."""
        return _printable_characters()

    @property
    def characters(self) -> str:
        """All printable characters in one string, by code point."""
        return "".join(_printable_characters())

    def character_index(self, char: str) -> np.int32:
        """Place of `char` in `character_list`; flattened prompts are made of these numbers."""
        return _printable_index()[char]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, PromptSpace)
            and self.prompts == other.prompts
            and self.max_length == other.max_length
        )

    def __repr__(self) -> str:
        return f"PromptSpace({list(self.prompts)}, max_length={self.max_length})"


def _check_listed(prompts: object, max_length: int) -> None:
    """Refuse what is no list of different usable prompts."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence) or not prompts:
        raise ConfigError(f"prompts {prompts!r}: a list of different strings is needed")
    for prompt in prompts:
        problem = _prompt_problem(prompt, max_length)
        if problem:
            raise ConfigError(f"prompts {list(prompts)}: {problem}")
    if len(set(prompts)) < len(prompts):
        raise ConfigError(f"prompts {prompts!r}: a list of different strings is needed")


def choose(name: str, value: object, allowed: Sequence[str]) -> str:
    """Return `value` if it is one of `allowed`, the values of the constructor keyword `name`.

    Raises:
        ConfigError: it is not; the message lists what is.
    """
    if isinstance(value, str) and value in allowed:
        return value
    raise ConfigError(f"{name} {value!r}: allowed are {', '.join(map(repr, allowed))}")


def max_prompt_length(config: WorldConfig) -> int:
    """Most characters of a prompt: the byte limit of an embedded world, else MAGI-1's 800 tokens.

    An embedded world counts UTF-8 bytes on top of this when it encodes a prompt.
    """
    text = config.text
    return text.max_bytes if isinstance(text, TextConfig) else config.dit.caption_max_length


def action_space(
    actions: str, prompts: Sequence[str], max_length: int = 256
) -> PromptSpace | spaces.Discrete:
    """Build the action space: `PromptSpace` for "text", `Discrete(len(prompts))` for "discrete".

    Raises:
        ConfigError: any other form, or prompts that `PromptSpace` refuses.
    """
    if choose("actions", actions, ACTIONS) == "text":
        return PromptSpace(prompts, max_length)
    _check_listed(prompts, max_length)
    return spaces.Discrete(len(prompts))


def observation_space(observations: str, config: WorldConfig) -> spaces.Space[Any]:
    """Build the observation space of one chunk.

    "frames" is uint8 `[F, H, W, 3]`, "latent" float32 `[16, P, h, w]` within plus and minus
    `LATENT_LIMIT`, "both" a `Dict` with the keys "frames" and "latent".

    Raises:
        ConfigError: any other form.
    """
    choose("observations", observations, OBSERVATIONS)
    frames = spaces.Box(0, 255, config.frames_shape, np.uint8)
    latent = spaces.Box(-LATENT_LIMIT, LATENT_LIMIT, config.latent_shape, np.float32)
    if observations == "frames":
        return frames
    return latent if observations == "latent" else spaces.Dict(frames=frames, latent=latent)


def observation(
    observations: str, frames: Callable[[], Frames], latents: Callable[[], Latents]
) -> Observation:
    """Build one observation; only the parts that the form names are asked for.

    Args:
        observations: "frames", "latent" or "both".
        frames: gives the frames of the chunk, uint8 `[F, H, W, 3]`.
        latents: gives its latents, float32 `[16, P, h, w]`, of any range.

    Returns:
        New arrays that share no memory with what the callables gave.
    """
    if observations == "frames":
        return frames().copy()
    latent = np.clip(latents(), -LATENT_LIMIT, LATENT_LIMIT)
    return latent if observations == "latent" else {"frames": frames().copy(), "latent": latent}


def as_prompt(action: object, max_length: int = 256) -> str:
    """Return `action` as a plain string.

    Raises:
        PromptError: not text, empty, longer than `max_length` characters or not printable.
    """
    problem = _prompt_problem(action, max_length)
    if problem:
        raise PromptError(problem)
    return str(action)


def as_index(action: object, prompts: Sequence[str]) -> int:
    """Return `action` as an index into `prompts`.

    Raises:
        ActionError: not an integer of Python or numpy (a bool is none), or out of range.
    """
    if isinstance(action, np.ndarray) and action.shape == ():
        action = action[()]
    if isinstance(action, (int, np.integer)) and not isinstance(action, bool):
        if 0 <= action < len(prompts):
            return int(action)
    raise ActionError(
        f"action {action!r}: an integer from 0 to {len(prompts) - 1} is needed, "
        f"an index into {list(prompts)}"
    )


def _prompt_problem(prompt: object, max_length: int) -> str | None:
    """Say what keeps `prompt` from being a prompt; None if nothing does."""
    if not isinstance(prompt, str):
        return f"prompt {prompt!r} is {type(prompt).__name__}, text is needed"
    if not 1 <= len(prompt) <= max_length:
        shown = prompt if len(prompt) <= 40 else prompt[:40] + "..."
        return f"prompt {shown!r} has {len(prompt)} characters, allowed are 1 to {max_length}"
    if not prompt.isprintable():
        bad = next(c for c in prompt if not c.isprintable())
        return f"prompt {prompt!r} has the character {bad!r}, only printable ones are allowed"
    return None
