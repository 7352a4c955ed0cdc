"""The file that a stopped training of an agent goes on from, whatever the agent is."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from magi_world.checkpoints.tensors import read_tensors_and_metadata, write_tensors
from magi_world.errors import AgentError, CheckpointError

CHECKPOINT = "training.safetensors"
CHANGEABLE = (
    "total_steps", "generations", "updates", "minutes", "save_minutes", "workers", "margin",
)  # fmt: skip
"""settings that may be others when a training goes on"""


def write_checkpoint(
    out: Path, tensors: dict[str, Tensor], description: dict[str, Any], **numbers: Any
) -> None:
    """Write tensors, the agent's description and plain numbers; the file appears whole or not."""
    about = {"description": description, **numbers}
    write_tensors(tensors, out / CHECKPOINT, {"training": json.dumps(about)})


def read_checkpoint(
    out: Path, description: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_checkpoint` wrote for the same description: tensors and numbers.

    Raises:
        AgentError: there is no checkpoint, or it is of another world, agent or setting; only
            `CHANGEABLE` may differ.
    """
    tensors, about = _read(out)
    was = about["description"]
    now = json.loads(json.dumps(description))  # tuples are lists on disk
    old, new = was | was["args"], now | now["args"]
    for name in sorted((old.keys() | new.keys()) - {"args", *CHANGEABLE}):
        if old.get(name) != new.get(name):
            raise AgentError(
                f"the training in {out} has {name} {old.get(name)!r}, not {new.get(name)!r}"
            )
    return tensors, about


def resumed_settings(out: Path, kind: str) -> dict[str, Any]:
    """The settings of the training whose checkpoint lies in a folder, as its `Args` take them.

    Raises:
        AgentError: there is no checkpoint, or it is of another kind of agent.
    """
    description = _read(out)[1]["description"]
    if description["kind"] != kind:
        raise AgentError(f"the training in {out} is of kind {description['kind']!r}, not {kind!r}")
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in description["args"].items()
    }


def _read(out: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors, metadata = read_tensors_and_metadata(out / CHECKPOINT)
        return tensors, json.loads(metadata["training"])
    except (CheckpointError, KeyError, ValueError) as error:
        raise AgentError(f"there is no training to go on with in {out}: {error}") from None
