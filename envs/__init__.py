"""Gymnasium environments over generated worlds and over the real games behind them.

Names are resolved when first asked for (PEP 562): importing `magi_world` imports this package to
register the environments, and must not bring torch along.
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from magi_world.envs import pong_duel_v0
    from magi_world.envs.game_calls import GameChunk
    from magi_world.envs.gymnasium_game import GymnasiumGame
    from magi_world.envs.multi_env import MultiEnv
    from magi_world.envs.multi_vector_env import ParallelVectorEnv
    from magi_world.envs.parallel_wrappers import ParallelNumericInfos
    from magi_world.envs.ray_env import RayVectorEnv
    from magi_world.envs.real_env import RealEnv
    from magi_world.envs.real_multi_env import RealMultiEnv, parallel_env
    from magi_world.envs.spaces import PromptSpace
    from magi_world.envs.text_image import TextImageSimilarity
    from magi_world.envs.vector_env import WorldVectorEnv
    from magi_world.envs.video_env import VideoEnv
    from magi_world.envs.world_env import WorldEnv
    from magi_world.envs.wrappers import (
        CallableReward,
        ChannelStack,
        FrameByFrame,
        LastFrame,
        NumericInfos,
    )

__all__ = [
    "CallableReward",
    "ChannelStack",
    "FrameByFrame",
    "GameChunk",
    "GymnasiumGame",
    "LastFrame",
    "MultiEnv",
    "NumericInfos",
    "ParallelNumericInfos",
    "ParallelVectorEnv",
    "PromptSpace",
    "RayVectorEnv",
    "RealEnv",
    "RealMultiEnv",
    "TextImageSimilarity",
    "VideoEnv",
    "WorldEnv",
    "WorldVectorEnv",
    "parallel_env",
    "pong_duel_v0",
]

_HOMES = {
    "CallableReward": "wrappers",
    "ChannelStack": "wrappers",
    "FrameByFrame": "wrappers",
    "GameChunk": "game_calls",
    "GymnasiumGame": "gymnasium_game",
    "LastFrame": "wrappers",
    "MultiEnv": "multi_env",
    "NumericInfos": "wrappers",
    "ParallelNumericInfos": "parallel_wrappers",
    "ParallelVectorEnv": "multi_vector_env",
    "PromptSpace": "spaces",
    "RayVectorEnv": "ray_env",
    "RealEnv": "real_env",
    "RealMultiEnv": "real_multi_env",
    "TextImageSimilarity": "text_image",
    "VideoEnv": "video_env",
    "WorldEnv": "world_env",
    "WorldVectorEnv": "vector_env",
    "parallel_env": "real_multi_env",
}
_MODULES = ("pong_duel_v0",)


def __getattr__(name: str) -> typing.Any:
    """Import what `name` stands for from its module and keep it."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_HOMES[name]}")
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
