"""Save, restore and branch a rollout: everything that decides its future, and nothing else."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from magi_world.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from magi_world.sampling.rollout import Rollout

_PARTS = ("world", "cache", "time", "ready", "chunk_index", "generators")


def save(rollout: "Rollout") -> dict[str, Any]:
    """See :meth:`magi_world.sampling.rollout.Rollout.state_dict`."""
    return {
        "world": rollout.world.name,
        "cache": rollout.cache.state_dict(),
        "time": torch.tensor(rollout.time),
        "ready": torch.tensor(rollout.ready),
        "chunk_index": rollout.chunk_index.clone(),
        "generators": torch.stack([g.get_state() for g in rollout.generators]),
    }


def restore(rollout: "Rollout", state: dict[str, Any]) -> None:
    """See :meth:`magi_world.sampling.rollout.Rollout.load_state_dict`."""
    missing = [key for key in _PARTS if key not in state]
    if missing:
        raise CheckpointError(f"this is no state of a rollout: it lacks {', '.join(missing)}")
    if state["world"] != rollout.world.name:
        raise CheckpointError(
            f"a state of {state['world']!r} in a rollout of {rollout.world.name!r}"
        )
    if len(state["time"]) != rollout.batch_size:
        raise CheckpointError(
            f"a state of {len(state['time'])} slots in a rollout of {rollout.batch_size}"
        )
    rollout.cache.load_state_dict(state["cache"])
    rollout.time = [int(time) for time in state["time"]]
    rollout.ready = [bool(ready) for ready in state["ready"]]
    rollout.chunk_index = state["chunk_index"].clone()
    for generator, saved in zip(rollout.generators, state["generators"], strict=True):
        generator.set_state(saved.clone())  # torch 2.13 crashes on a view with an offset


def fork(rollout: "Rollout", slots: Sequence[int], seeds: Iterable[int] | None = None) -> "Rollout":
    """See :meth:`magi_world.sampling.rollout.Rollout.fork`."""
    chosen = [int(slot) for slot in slots]
    wrong = [slot for slot in chosen if not 0 <= slot < rollout.batch_size]
    if wrong or not chosen:
        raise ConfigError(f"slots {chosen}: slots of 0…{rollout.batch_size - 1} are needed")
    copy = type(rollout)(
        rollout.world, len(chosen), steps=rollout.steps, temperature=rollout.temperature,
        starts=rollout.starts,
    )  # fmt: skip
    if seeds is not None:
        copy.seed(range(len(chosen)), seeds)
    for index, slot in enumerate(chosen):
        copy.cache.copy_slot(index, rollout.cache, slot)
        if seeds is None:
            copy.generators[index].set_state(rollout.generators[slot].get_state())
    copy.time = [rollout.time[slot] for slot in chosen]
    copy.ready = [rollout.ready[slot] for slot in chosen]
    copy.chunk_index = rollout.chunk_index[chosen].clone()
    return copy
