"""The real games: those that ship, by name, and anybody's own, by where its adapter lies.

An adapter is a class, or any callable without arguments, that makes a
:class:`magi_world.training.collect.Game`; `envs/gymnasium_game.py` is a ready base for one. It is
named `package.module:Class` or `path/to/file.py:Class`, and naming it runs that file.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magi_world.config import WorldConfig
from magi_world.envs.doom import TakeCoverGame
from magi_world.envs.pong import AtariPongGame, PongDuelGame
from magi_world.errors import ConfigError, MagiWorldError, WorldNotFound
from magi_world.players import chunk_prompts

if TYPE_CHECKING:
    from magi_world.training.collect import Game

GAMES: "dict[str, Callable[[], Game]]" = {
    TakeCoverGame.name: TakeCoverGame,
    PongDuelGame.name: PongDuelGame,
    AtariPongGame.name: AtariPongGame,
}
"""The games that ship, by the name of the world that was trained on them or is scored in them."""

ADAPTER = "adapter"
"""Key of a card that names the world's own game."""


def find_game(name: str) -> "Callable[[], Game]":
    """What makes the game of that name, or the one that an adapter so named gives.

    Raises:
        WorldNotFound: no shipped game has that name, and it names no adapter.
        ConfigError: the adapter cannot be imported, or is nothing that could be called.
    """
    if name in GAMES:
        return GAMES[name]
    source, colon, attribute = name.rpartition(":")
    if not (source and colon and attribute):
        raise WorldNotFound(
            f"no real game {name!r}; there is {', '.join(sorted(GAMES))}, or one's own as "
            "package.module:Class or path/to/file.py:Class"
        )
    module = _import(source)
    maker = getattr(module, attribute, None)
    if not callable(maker):
        raise ConfigError(f"{source} has no class or function {attribute!r} that makes a game")

    def make() -> "Game":
        try:
            game: Game = maker()
        except MagiWorldError:
            raise
        except Exception as error:  # such as a package that the game needs
            raise ConfigError(f"{name} makes no game: {type(error).__name__}: {error}") from error
        _check(game, name)
        return game

    return make


def world_game(card: Mapping[str, Any], named: str | None = None) -> "Callable[[], Game]":
    """What makes the real game of a world: the one named, else its card's, else the shipped one.

    Raises as :func:`find_game`.
    """
    return find_game(named or card.get(ADAPTER) or card["name"])


def check_fits(game: "Game", card: Mapping[str, Any], config: WorldConfig) -> None:
    """Check that the chunks of a game are those that a world dreams.

    Raises:
        ConfigError: other prompts, frames per chunk or frame shape.
    """
    played = (game.prompts, game.chunk_frames, tuple(game.frame_shape))
    dreamt = (chunk_prompts(card), config.frames_shape[0], config.frames_shape[1:])
    if played != dreamt:
        raise ConfigError(
            f"the world {card['name']!r} has prompts, frames per chunk and frame shape {dreamt}, "
            f"the real game {played}"
        )


def _import(source: str) -> Any:
    try:
        if not source.endswith(".py"):
            return importlib.import_module(source)
        path = Path(source).expanduser().resolve()
        if not path.is_file():
            raise ConfigError(f"no file {source!r} with an adapter")
        known = f"magi_world_adapter:{path}"
        if known not in sys.modules:
            spec = importlib.util.spec_from_file_location(known, path)
            assert spec is not None and spec.loader is not None  # the name ends in .py
            sys.modules[known] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[known])
            except BaseException:
                del sys.modules[known]
                raise
        return sys.modules[known]
    except MagiWorldError:
        raise
    except Exception as error:  # whatever the file does when it is run
        raise ConfigError(
            f"the adapter {source!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _check(game: Any, name: str) -> None:
    needed = ("name", "prompts", "chunk_frames", "frame_shape", "fps", "reset", "step", "close")
    missing = [one for one in needed if not hasattr(game, one)]
    if missing:
        raise ConfigError(f"{name} makes {type(game).__name__}, a game needs {missing} too")
    prompts = game.prompts
    if not (isinstance(prompts, list) and prompts and len(set(prompts)) == len(prompts)):
        raise ConfigError(f"{name}: prompts {prompts!r} are no list of different texts")
