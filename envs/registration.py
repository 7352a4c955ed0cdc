"""The ids that `import magi_world` adds to the registries of Gymnasium and PettingZoo."""

import gymnasium
import pettingzoo

ENTRY_POINTS = {
    "magi_world/DoomTakeCover-v0": "magi_world.envs.world_env:WorldEnv",
    "magi_world/DoomTakeCoverReal-v0": "magi_world.envs.real_env:RealEnv",
    "magi_world/Video-v0": "magi_world.envs.video_env:VideoEnv",
}
"""Class behind each id, as text: registering imports neither torch nor a game."""
VECTOR_ENTRY_POINTS = {
    "magi_world/DoomTakeCover-v0": "magi_world.envs.vector_env:WorldVectorEnv",
}
"""Class that `gymnasium.make_vec` builds; ids without one get Gymnasium's own loop."""

WORLDS = {
    "magi_world/DoomTakeCover-v0": "doom-take-cover",
    "magi_world/DoomTakeCoverReal-v0": "doom-take-cover",
}
"""The world behind the ids that have one; the others take a model as keyword."""


PARALLEL_WORLDS = {"magi_world/pong_duel-v0": "magi_world.envs.pong_duel_v0"}
"""The module behind each id of PettingZoo's registry."""


def register_environments() -> None:
    """Register every id that is not registered yet.

    No id sets `max_episode_steps`: the environments count their own horizon, and a limit given to
    `gymnasium.make` comes on top of it.
    """
    for env_id, entry_point in ENTRY_POINTS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point,
                vector_entry_point=VECTOR_ENTRY_POINTS.get(env_id),
                kwargs={"world": WORLDS[env_id]} if env_id in WORLDS else {},
            )
    if not hasattr(pettingzoo, "register"):  # its registry is newer than what else is needed of it
        return
    for env_id, module in PARALLEL_WORLDS.items():
        for kind, maker, registry in (
            ("parallel", "parallel_env", pettingzoo.parallel_registry),
            ("aec", "env", pettingzoo.aec_registry),
        ):
            if env_id not in registry:
                pettingzoo.register(kind, env_id, entry_point=f"{module}:{maker}")
