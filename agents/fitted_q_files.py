"""What a training of fitted Q learning says of itself, and what it may take from another one."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magi_world.agents.files import describe, read_description
from magi_world.agents.moments import Taken
from magi_world.errors import AgentError
from magi_world.training.prepare import tics_by_source
from magi_world.training.store import Store

if TYPE_CHECKING:
    from magi_world.agents.fitted_q import Args
    from magi_world.agents.ppo_agent import PPOAgent
    from magi_world.world import World

KIND = "fitted-q"
DATA = "data"
"""in an agent's description: tics of the real game in datasets that its world did not learn from,
those of the agent by whose values it learned among them"""
DRAWN_FROM = "drawn_from"
"""in an agent's description: chunks of the data that its moments lie in, and tics by dataset"""
MOMENTS = "moments"
"""folder of the dreamed moments in an agent's"""
TAKEN = "taken"
"""in an agent's description: how many of the files in it are of less data, and of how many chunks;
there only if any are"""
_OF_THE_AGENT = ("prompts", "latent_shape", "history", "channels", "hidden")
_OF_A_DREAM = (
    "history", "hold", "earliest", "temperature", "denoising_steps", "reward", "signal_weights",
)  # fmt: skip


def described(world: "World", args: "Args") -> dict[str, Any]:
    """What `agent.json` will hold, but for data, settings and numbers."""
    return describe(world, KIND, "dream") | {
        "history": args.history,
        "channels": list(args.channels),
        "hidden": args.hidden,
        "greedy": args.greedy,
        "margin": args.margin / args.softness,  # as log-probabilities have it
    }


def drawn_from(store: Store) -> dict[str, Any]:
    """The entry `DRAWN_FROM` of a store's data."""
    return {"chunks": len(store.valid), "tics": tics_by_source(store)}


def tics_beyond(world: "World", store: Store) -> dict[str, int]:
    """Tics of the real game in every dataset, by its name, that the world did not learn from."""
    known = world.card.get("data", {}).get("datasets", {})
    return {name: tics for name, tics in tics_by_source(store).items() if name not in known}


def check_values(values: "PPOAgent", description: dict[str, Any], args: "Args") -> None:
    """Raise `AgentError` unless this agent's values are in the units of such a training."""
    told = values.description
    if told.get("kind") != KIND:
        raise AgentError(f"values of an agent of kind {told.get('kind')!r}: {KIND!r} is needed")
    pairs = {name: (told[name], description[name]) for name in _OF_THE_AGENT}
    own = json.loads(json.dumps(asdict(args)))
    for name in ("reward", "signal_weights", "gamma"):
        pairs[name] = (told["args"][name], own[name])
    _check("values", pairs)


def check_moments(folder: Path, description: dict[str, Any], args: "Args") -> None:
    """Raise `AgentError` unless what was dreamed for the agent in `folder` is what `args` ask for.

    `description` is that of the new training; where it says already what data its moments are
    drawn from, that counts too: the other's must be the same, or the first datasets of it.
    """
    told = read_description(folder)
    if told.get("kind") != KIND:
        raise AgentError(f"moments of an agent of kind {told.get('kind')!r}: {KIND!r} is needed")
    if not any((folder / MOMENTS).glob("*.safetensors")):
        raise AgentError(f"{folder / MOMENTS} has no moments: they were deleted, or never dreamed")
    pairs = {"world_hash": (told.get("world_hash"), description["world_hash"])}
    if DRAWN_FROM in description:
        theirs, needed = told.get(DRAWN_FROM), description[DRAWN_FROM]
        if not _begins_with(needed, theirs):
            pairs[DRAWN_FROM] = (theirs, needed)
    own = json.loads(json.dumps(asdict(args)))
    _check("moments", pairs | {name: (told["args"][name], own[name]) for name in _OF_A_DREAM})


def _begins_with(data: dict[str, Any], first: dict[str, Any] | None) -> bool:
    """Whether data, as `DRAWN_FROM` describes it, is the other or that and more datasets."""
    if first is None or data == first:
        return data == first
    theirs, own = list(first["tics"].items()), list(data["tics"].items())
    return 0 < len(theirs) < len(own) and theirs == own[: len(theirs)]


def take_moments(folder: Path, out: Path, description: dict[str, Any]) -> None:
    """Give a training in `out` the moments in the folder of another: links to them, or copies.

    If they are of less data, its description, which has its `DRAWN_FROM`, says so from now on.
    """
    told = read_description(folder)
    (out / MOMENTS).mkdir(parents=True, exist_ok=True)
    paths = sorted((folder / MOMENTS).glob("*.safetensors"))
    if told[DRAWN_FROM] != description[DRAWN_FROM]:
        description[TAKEN] = {"parts": len(paths), "chunks": told[DRAWN_FROM]["chunks"]}
    elif TAKEN in told:
        description[TAKEN] = told[TAKEN]
    for path in paths:
        taken = out / MOMENTS / path.name
        partial = taken.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        try:
            os.link(path, partial)
        except OSError:  # another disk
            shutil.copyfile(path, partial)
        partial.replace(taken)


def taken(description: dict[str, Any]) -> Taken | None:
    """What of a training's moments is of less data, by its description."""
    return Taken(**description[TAKEN]) if TAKEN in description else None


def _check(what: str, pairs: dict[str, tuple[Any, Any]]) -> None:
    for name, (theirs, needed) in pairs.items():
        if theirs != needed:
            raise AgentError(f"{what} of an agent with {name} {theirs!r}, not {needed!r}")
