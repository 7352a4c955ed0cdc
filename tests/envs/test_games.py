"""Games by name and by where their adapter lies."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from magi_world.config import WorldConfig
from magi_world.envs.doom import TakeCoverGame
from magi_world.envs.games import check_fits, find_game, world_game
from magi_world.envs.real_env import RealEnv
from magi_world.errors import ConfigError, WorldNotFound
from tests.tiny_world import PROMPTS, tiny_card

ADAPTER = '''
"""A game that shows what it is told."""
import math
import numpy as np
from magi_world.envs import GameChunk

class Told:
    name, chunk_frames, frame_shape, fps = "told", 4, (64, 64, 3), 35
    prompts = ["stand still", "strafe left", "strafe right"]

    def reset(self, seed):
        return self.step(0)

    def step(self, action):
        frames = np.full((4, 64, 64, 3), action, np.uint8)
        return GameChunk(frames, 4, float(action), False, False, math.nan)

    def close(self):
        pass

class Half:
    name = "half"

def twice():
    game = Told()
    game.prompts = ["a", "a"]
    return game

def broken():
    return 1 / 0

nothing = 3
'''


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.py"
    path.write_text(ADAPTER, encoding="utf-8")
    return path


def test_a_shipped_game_is_found_by_name() -> None:
    assert find_game("doom-take-cover") is TakeCoverGame


def test_an_adapter_is_found_in_a_file(adapter: Path) -> None:
    game = find_game(f"{adapter}:Told")()
    assert game.name == "told"
    assert type(find_game(f"{adapter}:Told")()) is type(game)  # the file is run once


def test_an_adapter_is_found_in_a_module(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(adapter.parent)
    assert find_game("adapter:Told")().name == "told"


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("Absent", "has no class or function 'Absent'"),
        ("nothing", "has no class or function 'nothing'"),
        ("Half", r"makes Half, a game needs \['prompts'"),
        ("twice", r"prompts \['a', 'a'\] are no list of different texts"),
        ("broken", "makes no game: ZeroDivisionError"),
    ],
)
def test_what_is_wrong_with_an_adapter_is_named(adapter: Path, attribute: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_game(f"{adapter}:{attribute}")()


def test_what_cannot_be_imported_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file .*absent.py"):
        find_game(f"{tmp_path / 'absent.py'}:Game")
    (tmp_path / "wrong.py").write_text("import no_such_package\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match="wrong.py' cannot be imported: ModuleNotFound"):
            find_game(f"{tmp_path / 'wrong.py'}:Game")
    with pytest.raises(ConfigError, match="'no_such_package' cannot be imported"):
        find_game("no_such_package:Game")
    for name in ("chess", "chess:", ":Game"):
        with pytest.raises(WorldNotFound, match="no real game .*path/to/file.py:Class"):
            find_game(name)


def test_a_card_may_name_its_game(adapter: Path) -> None:
    card = {"name": "doom-take-cover", "adapter": f"{adapter}:Told"}
    assert world_game(card)().name == "told"
    assert world_game(card, "doom-take-cover") is TakeCoverGame
    assert world_game({"name": "doom-take-cover"}) is TakeCoverGame


def test_a_game_must_fit_its_world() -> None:
    card = tiny_card()
    config = WorldConfig.from_dict(card["config"])
    fitting = {"prompts": PROMPTS, "chunk_frames": 4, "frame_shape": (64, 64, 3)}
    check_fits(SimpleNamespace(**fitting), card, config)
    for name, value in (("prompts", ["a"]), ("chunk_frames", 8), ("frame_shape", (32, 64, 3))):
        game = SimpleNamespace(**{**fitting, name: value})
        with pytest.raises(ConfigError, match="the world 'tiny' has prompts"):
            check_fits(game, card, config)


def test_the_twin_plays_an_adapter(adapter: Path, tiny_world_path: Path) -> None:
    with pytest.raises(ConfigError, match="'tiny' has no real game"):
        RealEnv(tiny_world_path)
    env = RealEnv(tiny_world_path, game=f"{adapter}:Told")
    env.reset(seed=0)
    observation, reward, *_, info = env.step("strafe right")
    assert reward == 2.0 and int(observation[0, 0, 0, 0]) == 2  # type: ignore[index]
    assert info == {"prompt": "strafe right", "chunk": 1, "valid_frames": 4}  # no health is known
    env.close()
