"""Save, restore and branch a rollout: what its slots have gone through, and their generators.

How a rollout makes its next chunk (denoising steps, temperature, guidance) is its own and not part
of a state: the same history can go on in a rollout with other settings.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from magi_world.errors import CheckpointError
from magi_world.sampling.arguments import check_slots

if TYPE_CHECKING:
    from magi_world.sampling.rollout import Rollout
    from magi_world.world import World

_PARTS = ("world", "weights", "dtype", "cache", "time", "ready", "chunk_index", "generators")
_READ = 256  # leading numbers of every tensor that the mark of a world is made of


def mark_of(world: "World") -> str:
    """Mark that tells the weights of worlds apart, the same on every machine.

    It reads the first numbers of every tensor, rounded as worlds store them: a training moves them
    all, and the weights of a large world need not be read through.
    """
    digest = hashlib.sha256()
    for part, module in world.modules().items():
        for name, tensor in module.state_dict().items():
            digest.update(f"{part}.{name}{tuple(tensor.shape)}".encode())
            numbers = tensor.flatten()[:_READ].to(torch.bfloat16).cpu()
            digest.update(numbers.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _facts(rollout: "Rollout") -> dict[str, Any]:
    """What has to be the same where a state goes on, beside the shapes."""
    return {
        "world": rollout.world.name,
        "weights": mark_of(rollout.world),
        "dtype": str(rollout.cache.keys_LRKD.dtype).removeprefix("torch."),
    }


def save(rollout: "Rollout") -> dict[str, Any]:
    """See :meth:`magi_world.sampling.rollout.Rollout.state_dict`."""
    return {
        **_facts(rollout),
        "latent_shape": torch.tensor(rollout.world.config.latent_shape),
        "cache": rollout.cache.state_dict(),
        "time": torch.tensor(rollout.time),
        "ready": torch.tensor(rollout.ready),
        "chunk_index": rollout.chunk_index.clone(),
        "generators": torch.stack([g.get_state() for g in rollout.generators]),
    }


def restore(rollout: "Rollout", state: Mapping[str, Any]) -> None:
    """See :meth:`magi_world.sampling.rollout.Rollout.load_state_dict`."""
    check_fits(rollout, state)
    rollout.cache.load_state_dict(state["cache"])
    rollout.time = [int(time) for time in state["time"]]
    rollout.ready = [bool(ready) for ready in state["ready"]]
    rollout.chunk_index = state["chunk_index"].clone()
    for generator, saved in zip(rollout.generators, state["generators"], strict=True):
        generator.set_state(saved.clone())  # torch 2.13 crashes on a view with an offset


def check_fits(rollout: "Rollout", state: Mapping[str, Any]) -> None:
    """Raise `CheckpointError` with the reason unless the rollout can go on from the state."""
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{type(state).__name__} is no state of a rollout")
    missing = [key for key in _PARTS if key not in state]
    if missing:
        raise CheckpointError(f"this is no state of a rollout: it lacks {', '.join(missing)}")
    facts = _facts(rollout)
    if state["world"] != facts["world"]:
        raise CheckpointError(f"a state of {state['world']!r} in a rollout of {facts['world']!r}")
    if state["weights"] != facts["weights"]:
        raise CheckpointError(
            f"a state made with other weights of {facts['world']!r} (mark {state['weights']}, here "
            f"{facts['weights']}): load the world that it was made in"
        )
    time = state["time"]
    if not isinstance(time, Tensor) or time.ndim != 1:
        raise CheckpointError("a damaged state: time: one number a slot is needed")
    if len(time) != rollout.batch_size:
        raise CheckpointError(f"a state of {len(time)} slots in a rollout of {rollout.batch_size}")
    if state["dtype"] != facts["dtype"]:
        raise CheckpointError(
            f"a state in {state['dtype']} in a rollout in {facts['dtype']}: load the world with "
            f"dtype={state['dtype']!r}"
        )
    # one number of tokens may stand for several picture sizes; states of old do not say which
    shape = torch.tensor(rollout.world.config.latent_shape)
    given = state.get("latent_shape", shape)
    check_like("latent_shape", given, shape)
    if not torch.equal(given, shape):
        raise CheckpointError(
            f"a state of chunks {given.tolist()} in a rollout of chunks {shape.tolist()}"
        )
    rollout.cache.check_state(state["cache"])
    own = {
        "time": torch.tensor(rollout.time),
        "ready": torch.tensor(rollout.ready),
        "chunk_index": rollout.chunk_index,
        "generators": torch.stack([g.get_state() for g in rollout.generators]),
    }
    for name, tensor in own.items():
        check_like(name, state[name], tensor)
    for name in ("time", "chunk_index"):
        if int(state[name].min()) < 0:
            raise CheckpointError(f"a damaged state: {name} {state[name].tolist()}: below 0")
    try:
        for saved in state["generators"]:
            torch.Generator().set_state(saved.clone())
    except RuntimeError as error:
        raise CheckpointError(f"a damaged state: generators: {error}") from None


def check_like(name: str, given: Any, own: Tensor, axes: str = "") -> None:
    """Check that a saved tensor has the shape and dtype of one's own, which it is to replace.

    Args:
        name: of the tensor, for the message.
        given: what a state holds.
        own: what it has to be like.
        axes: what the axes are, for the message.

    Raises:
        CheckpointError: it is no tensor, or another.
    """
    if not isinstance(given, Tensor):
        raise CheckpointError(f"a damaged state: {name} is {type(given).__name__}, no tensor")
    if given.shape != own.shape:
        named = f" ({axes})" if axes else ""
        raise CheckpointError(f"{name} {tuple(given.shape)} do not fit {tuple(own.shape)}{named}")
    if given.dtype != own.dtype:
        raise CheckpointError(f"a damaged state: {name} {given.dtype}, needed are {own.dtype}")


def fork(
    rollout: "Rollout",
    slots: Sequence[int],
    seeds: Iterable[int] | None = None,
    *,
    steps: int | None = None,
    temperature: float | None = None,
) -> "Rollout":
    """See :meth:`magi_world.sampling.rollout.Rollout.fork`."""
    rollout.require_unmoved()
    chosen = check_slots([] if slots is None else slots, rollout.batch_size, repeated=True)
    copy = type(rollout)(
        rollout.world, len(chosen),
        steps=rollout.steps if steps is None else steps,
        temperature=rollout.temperature if temperature is None else temperature,
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
