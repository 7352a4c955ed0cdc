"""Recipes: one TOML file a world with its card, its configuration and its stages."""

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any

from magi_world.checkpoints.world_format import check_card
from magi_world.config import WorldConfig
from magi_world.errors import CheckpointError, ConfigError, RecipeError
from magi_world.training.loop import StageSettings
from magi_world.training.precision import PRECISIONS
from magi_world.training.reading import Reading
from magi_world.training.recipe_card import check_recipe_card, check_wordings

OBJECTIVES = ("flow", "energy")


@dataclass(frozen=True, kw_only=True)
class VAESettings(StageSettings):
    """Stage 1."""

    kl_weight: float = 2e-5
    motion_weight: float = 3.0
    """extra weight of pixels that change within their chunk"""
    unusual_weight: float = 0.0
    """extra weight of pixels that differ from the median picture of the data: what is small and may
    stand still, such as a paddle before a plain background"""
    rare_weight: float = 0.0
    """extra weight of pixels whose colour is rare in the data, such as a fireball's: what is small
    and far away before a background that moves"""
    decoder_only: bool = False
    """the encoder stays as it is, so that latents, and what has learned on them, stay valid"""


@dataclass(frozen=True, kw_only=True)
class DiTSettings(StageSettings):
    """Stage 2; ``batch_size`` counts sequences."""

    sequence: int = 16
    caption_dropout: float = 0.1
    history_noise: float = 0.05
    objective: str = "flow"
    """"flow": velocity at all times, for many denoising steps. "energy": the chunks that the
    world's own number of steps gives, under the energy score, so that one or two steps sample
    instead of giving the mean of what may come"""
    unusual_weight: float = 0.0
    """extra weight, in the energy score, of places that looked unusual in the chunk before"""
    turn_weight: float = 0.0
    """extra weight of chunks in which the action is a new one, and of those right behind them: what
    an agent must learn is what its actions change, and most of them go on as before"""
    own_history: float = 0.0
    """share of the batches whose history is in part the model's own"""
    own_after: float = 0.0
    """share of the steps before the first such batch: what a young model generates teaches little,
    and takes time"""
    own_depth: int = 1
    """most chunks, one after the other, that the model has generated in such a history"""
    most_kv_range: int = 0
    """0: all batches have the world's own KV range. Else every batch draws one of 1, 2, 4, … up to
    this, also those of the outcome heads, so that one world can be measured at all of them; a
    sequence must be as long"""
    copies: int = 1
    """noisy copies of every chunk; the energy score needs two or more"""
    paraphrases: int = 4
    workers: int = 1
    """processes that share the sequences of a batch, see `training/workers.py`"""
    compile: bool = False
    """run the layers through torch.compile, see `training/compiled.py`; needs a C++ compiler"""


@dataclass(frozen=True, kw_only=True)
class OutcomeSettings(StageSettings):
    """Stage 3; ``batch_size`` counts chunks."""

    chunks: int = 24_000


@dataclass(frozen=True, kw_only=True)
class WordsSettings(StageSettings):
    """More wordings for a trained world, `training/words_stage.py`; ``batch_size`` counts clips."""

    wordings: int = 12
    """of each prompt in a batch, itself among them"""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A world's recipe."""

    path: Path
    card: dict[str, Any]
    config: WorldConfig
    vae: VAESettings
    dit: DiTSettings
    outcome: OutcomeSettings
    data: Reading = Reading()
    """how data is read that was not recorded in chunks of the world"""
    words: WordsSettings | None = None
    """None where the recipe has no section `[words]`"""
    patterns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """`[words.patterns]`: more wordings of each prompt, with braces as a shell expands them"""


def available() -> list[str]:
    """Names of the recipes that the package ships."""
    folder = resources.files("magi_world.training") / "recipes"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".toml"))


def load_recipe(name_or_path: str | Path, **overrides: dict[str, Any]) -> Recipe:
    """Read a recipe by its shipped name or its path.

    Args:
        name_or_path: `doom_take_cover`, or a TOML file.
        overrides: values that replace those of a section, e.g. ``vae={"steps": 10}``.

    Raises:
        RecipeError: no such recipe, an unknown key or a value that cannot work.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        name = str(name_or_path).replace("-", "_")
        path = Path(str(resources.files("magi_world.training") / "recipes" / f"{name}.toml"))
    if not path.is_file():
        raise RecipeError(f"no recipe {str(name_or_path)!r}; shipped are {', '.join(available())}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors may begin with a mark
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from None
    known = {"card", "config", *_SETTINGS}
    config_keys = data["config"] if isinstance(data.get("config"), dict) else {"outcome"}
    if "outcome" not in config_keys:  # a world without heads has no such stage
        data.setdefault("outcome", {"steps": 1, "batch_size": 1})
    if set(data) - {"data", "words"} != known:
        raise RecipeError(f"{path} has the sections {sorted(data)}, expected {sorted(known)}")
    flat = sorted(key for key, value in data.items() if not isinstance(value, dict))
    if flat:
        raise RecipeError(f"{path}: {', '.join(flat)} must be a section of keys")
    settings = {**_SETTINGS, **({"words": WordsSettings} if "words" in data else {})}
    foreign = sorted(set(overrides) - set(settings))
    if foreign:
        raise RecipeError(f"{path}: overrides of {foreign}, known are {sorted(settings)}")
    patterns = data.get("words", {}).pop("patterns", {})
    sections = {
        key: _settings(cls, {**data[key], **overrides.get(key, {})}, f"{path} [{key}]")
        for key, cls in settings.items()
    }
    try:
        config = WorldConfig.from_dict(data["config"])
    except ConfigError as error:
        raise RecipeError(f"{path} [config]: {error}") from None
    try:
        check_card({**data["card"], "fps": config.fps, "config": data["config"]}, f"{path} [card]")
    except CheckpointError as error:
        raise RecipeError(str(error)) from None
    check_recipe_card(data["card"], config.text, f"{path} [card]")
    check_wordings(patterns, data["card"]["prompts"], f"{path} [words]: patterns")
    reading = _reading(data.get("data", {}), config, f"{path} [data]")
    card = _with_adapter(data["card"], path)
    return Recipe(path=path, card=card, config=config, data=reading, patterns=patterns, **sections)


def _reading(values: dict[str, Any], config: WorldConfig, source: str) -> Reading:
    unknown = sorted(set(values) - {f.name for f in fields(Reading)})
    if unknown:
        raise RecipeError(f"{source}: unknown {unknown}")
    try:
        reading = Reading(**values)
        reading.check_chunk(config.chunk_frames)
    except ConfigError as error:
        raise RecipeError(f"{source}: {error}") from None
    return reading


def _with_adapter(card: dict[str, Any], path: Path) -> dict[str, Any]:
    """The card; an adapter that is a file is looked for beside the recipe and named in full."""
    if "adapter" not in card:
        return card
    file, _, attribute = str(card["adapter"]).rpartition(":")
    if file.endswith(".py"):
        found = (path.parent / file).resolve()
        if not found.is_file():
            raise RecipeError(f"{path} [card]: no file {file!r} beside the recipe for adapter")
        return {**card, "adapter": f"{found}:{attribute}"}
    if not (file and attribute):
        raise RecipeError(
            f"{path} [card]: adapter {card['adapter']!r} is neither package.module:Class nor "
            "file.py:Class"
        )
    return card


_SETTINGS: dict[str, type[StageSettings]] = {
    "vae": VAESettings, "dit": DiTSettings, "outcome": OutcomeSettings,
}  # fmt: skip
_KINDS: dict[Any, str] = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text",
}  # fmt: skip
_LOWEST = {
    "steps": 1, "batch_size": 1, "log_every": 1, "sample_every": 1, "sequence": 2,
    "paraphrases": 1, "chunks": 1, "copies": 1, "own_depth": 1, "workers": 1, "wordings": 1,
}  # fmt: skip
_POSITIVE = ("learning_rate", "grad_clip")
_SHARES = ("cooldown", "caption_dropout", "history_noise", "own_history", "own_after", "ema_decay")


def _settings(cls: type[StageSettings], values: dict[str, Any], source: str) -> Any:
    """Build the settings of a stage; refuse what no stage could run with."""
    kinds = {f.name: f.type for f in fields(cls)}
    unknown = sorted(set(values) - set(kinds))
    if unknown:
        raise RecipeError(f"{source}: unknown {unknown}; known are {sorted(kinds)}")
    for name, value in values.items():
        allowed = (int, float) if kinds[name] is float else (kinds[name],)
        if type(value) not in allowed:
            raise RecipeError(f"{source}: {name} {value!r} is not {_KINDS[kinds[name]]}")
        if name == "precision":
            if value not in PRECISIONS:
                raise RecipeError(f"{source}: precision {value!r} is not one of {PRECISIONS}")
            continue
        if name == "objective":
            if value not in OBJECTIVES:
                raise RecipeError(f"{source}: objective {value!r} is not one of {OBJECTIVES}")
            if value == "energy" and values.get("copies", 1) < 2:
                raise RecipeError(f"{source}: the energy objective needs copies = 2 or more")
            continue
        lowest = _LOWEST.get(name, 0)
        if not lowest <= value < math.inf or (name in _POSITIVE and value == 0):
            raise RecipeError(f"{source}: {name} {value} is below what can work")
        if name in _SHARES and (value > 1 or (name == "ema_decay" and value == 1)):
            raise RecipeError(f"{source}: {name} {value} is a share, at most 1 (ema_decay below)")
    size, workers = values.get("batch_size", 0), values.get("workers", 1)
    if size % workers:
        raise RecipeError(f"{source}: batch_size {size} cannot be shared by {workers} workers")
    try:
        settings = cls(**values)
    except TypeError as error:  # a value without a default is missing
        raise RecipeError(f"{source}: {error}") from None
    if getattr(settings, "most_kv_range", 0) > getattr(settings, "sequence", math.inf):
        raise RecipeError(f"{source}: most_kv_range is above sequence: no chunk would see so many")
    return settings
