"""Chunk-autoregressive video diffusion worlds as reinforcement-learning environments.

Importing the package registers its environments with Gymnasium and stays light: no torch, no GPU,
no network. Everything else is resolved when it is first asked for.

    import gymnasium as gym, magi_world

    env = gym.make("magi_world/DoomTakeCover-v0")
    world = magi_world.load("doom-take-cover")
"""

import importlib
import typing

from magi_world.envs import registration

if typing.TYPE_CHECKING:
    from magi_world import agents, envs, errors, kernels, worlds
    from magi_world.checkpoints.state_file import load_state, save_state
    from magi_world.world import load

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "agents",
    "envs",
    "errors",
    "kernels",
    "load",
    "load_state",
    "save_state",
    "worlds",
]

_MODULES = ("agents", "envs", "errors", "kernels", "worlds")
_HOMES = {
    "load": "world",
    "load_state": "checkpoints.state_file",
    "save_state": "checkpoints.state_file",
}


def __getattr__(name: str) -> typing.Any:
    """Import what `name` stands for and keep it (PEP 562)."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOMES:
        module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
        value = globals()[name] = getattr(module, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


registration.register_environments()
