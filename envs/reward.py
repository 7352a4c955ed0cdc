"""Rewards that users write: a function of a chunk's frames and of its prompt."""

import importlib
import math
from collections.abc import Callable
from numbers import Real
from typing import Any

from magi_world.envs.spaces import Frames
from magi_world.errors import ConfigError

RewardFunction = Callable[[Frames, str], Any]
"""frames uint8 `[F, H, W, 3]` and the prompt of a step -> a number"""


def load_reward(name: str) -> RewardFunction:
    """Import the function that "module:function" names.

    Raises:
        ConfigError: another form, no such module or function, or something that cannot be called.
    """
    if not isinstance(name, str) or name.count(":") != 1 or not all(name.split(":")):
        raise ConfigError(
            f"reward {name!r}: 'module:function' is needed; the wrapper CallableReward takes "
            "callable objects"
        )
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"reward {name!r} cannot be imported: {error}") from error
    return check_reward(function)


def check_reward(function: Any) -> RewardFunction:
    """Return what can be called.

    Raises:
        ConfigError: it cannot.
    """
    if not callable(function):
        raise ConfigError(f"reward {function!r}: cannot be called with frames and a prompt")
    called: RewardFunction = function
    return called


def rated(function: RewardFunction, frames: Frames, prompt: str) -> float:
    """Call a reward function on frames of its own and return a finite number.

    Raises:
        ConfigError: it returned something else.
    """
    value = function(frames.copy(), prompt)
    if hasattr(value, "item") and getattr(value, "shape", None) in ((), (1,)):  # array or tensor
        value = value.item()
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"the reward function returned {value!r}: a finite number is needed")
    return float(value)
