"""A model as far as it is known without its weights: its configuration and where its parts are."""

from dataclasses import dataclass, replace

from magi_world.checkpoints.finding import find_world
from magi_world.checkpoints.magi1_format import Magi1Checkpoint
from magi_world.checkpoints.magi1_world import Magi1Parts
from magi_world.config import WorldConfig
from magi_world.errors import ConfigError, WorldNotFound
from magi_world.planning.presets import PRESETS


@dataclass(frozen=True)
class Model:
    """What is found before weights are read."""

    name: str
    config: WorldConfig
    checkpoint: Magi1Checkpoint | None
    """the files of a MAGI-1 checkpoint, their headers read; None for every other model"""


def find_model(name: str, parts: Magi1Parts | None = None) -> Model:
    """Find a checkpoint or world and check what can be checked without reading its weights.

    Args:
        name: as `magi_world.load` takes it.
        parts: where the parts of a MAGI-1 checkpoint are; None finds them.

    Raises:
        WorldNotFound: nothing of that name.
        CheckpointError: a part is absent, truncated or damaged.
        ConfigError: a configuration that cannot work.
    """
    found = find_world(name, Magi1Parts() if parts is None else parts)
    config = WorldConfig.from_dict(found.card["config"])
    return Model(str(found.card["name"]), config, found.checkpoint)


def preset_or_model(name: str) -> Model:
    """A published model by its preset's name, or what :func:`find_model` finds.

    Raises:
        WorldNotFound, CheckpointError, ConfigError: as :func:`find_model`.
    """
    if name in PRESETS:
        return Model(name, PRESETS[name], None)
    try:
        return find_model(name)
    except WorldNotFound as error:
        raise WorldNotFound(f"{error}; presets are {', '.join(PRESETS)}") from None


def resized(config: WorldConfig, size: tuple[int, int] | None) -> WorldConfig:
    """The configuration for pictures of another height and width; None leaves it.

    Raises:
        ConfigError: sides that are not whole patches of VAE and DiT.
    """
    if size is None:
        return config
    if min(size) < 2 * config.vae.patch_size * config.dit.patch_size:
        raise ConfigError(f"size {size[0]}x{size[1]}: both sides need two tokens or more")
    return replace(config, height=size[0], width=size[1])
