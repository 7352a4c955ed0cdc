"""The files of an agent: `agent.json`, which describes it, and safetensors with its weights."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magi_world.disk import write_text
from magi_world.errors import AgentError
from magi_world.training.bank import OTHER_BANK

if TYPE_CHECKING:
    from magi_world.world import World

DESCRIPTION, WEIGHTS = "agent.json", "agent.safetensors"
STARTS = "starts_from"
"""entry of clips that dreams began in and that are not the world's own"""


def describe(world: "World", kind: str, trained_in: str) -> dict[str, Any]:
    """The entries that every agent's description begins with.

    `kind` is the agent's class ("ppo", "linear"), `trained_in` is "dream" or "real".
    """
    description = {
        "kind": kind,
        "world": world.name,
        "world_hash": world_hash(world),
        "trained_in": trained_in,
        "prompts": list(world.card["prompts"]),
        "observations": "latent",
        "latent_shape": list(world.config.latent_shape),
    }
    if trained_in == "dream" and OTHER_BANK in world.card:
        description[STARTS] = world.card[OTHER_BANK]
    return description


def read_description(folder: Path) -> dict[str, Any]:
    """Read what `agent.json` of a folder says.

    Raises:
        AgentError: there is no such file, or it is no JSON object.
    """
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AgentError(f"{folder} does not hold an agent: {error}") from error
    if not isinstance(description, dict):
        raise AgentError(f"{folder / DESCRIPTION} is no JSON object")
    return description


def write_description(description: dict[str, Any], folder: Path) -> None:
    """Write `agent.json` under a temporary name, then rename it."""
    write_text(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def check_fits(description: dict[str, Any], world: "World") -> None:
    """Raise `AgentError` unless the agent was trained on the world's prompts and latents."""
    for name, own, theirs in (
        ("prompts", description["prompts"], list(world.card["prompts"])),
        ("latents", description["latent_shape"], list(world.config.latent_shape)),
    ):
        if own != theirs:
            raise AgentError(
                f"the agent was trained in {description['world']!r} with the {name} "
                f"{own}, but {world.name!r} has {theirs}"
            )


def world_hash(world: "World") -> str | None:
    """Sixteen hexadecimal digits that name the weights and the bank in a world's folder.

    None without a folder. Clips that `with_more_clips` gave it are not among them.
    """
    return _hash(world, "*.safetensors")


def vae_hash(world: "World") -> str | None:
    """The same of its VAE alone, through which an agent sees the real game."""
    return _hash(world, "vae.safetensors")


def _hash(world: "World", names: str) -> str | None:
    if world.folder is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(world.folder.glob(names)):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def settings_hash(settings: dict[str, Any]) -> str:
    """Sixteen hexadecimal digits that name the settings of a training, whatever its seed is."""
    kept = {key: settings[key] for key in sorted(settings) if key not in ("seed", "save_minutes")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
