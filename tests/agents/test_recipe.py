"""The file that holds how a world's agents are trained."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from magi_world.agents.linear_training import Args as LinearArgs
from magi_world.agents.ppo import Args
from magi_world.agents.ppo_real import REAL_SETTINGS
from magi_world.agents.recipe import available, recipe_settings
from magi_world.agents.selfplay import SETTINGS
from magi_world.cli import app
from magi_world.errors import RecipeError


def write(folder: Path, text: str) -> Path:
    path = folder / "agents.toml"
    path.write_text(text, encoding="utf-8")
    return path


SHIPPED = {"doom_take_cover": ("ppo", "ppo-real", "linear"), "pong_duel": ("selfplay",)}


@pytest.mark.parametrize("name", available())
def test_shipped_recipes_are_settings_that_work(name: str) -> None:
    for section in SHIPPED[name]:
        assert recipe_settings(name.replace("_", "-"), section)
    Args(**recipe_settings(name, "ppo"))
    Args(**(REAL_SETTINGS | recipe_settings(name, "ppo-real")))
    Args(**(SETTINGS | recipe_settings(name, "selfplay")))
    LinearArgs(**recipe_settings(name, "linear"))


def test_values_come_as_their_settings_want_them(tmp_path: Path) -> None:
    text = '[ppo]\ngamma = 1\nchannels = [8, 4]\nhorizon = 5\nstarts = "opening"\n'
    path = write(tmp_path, text + "signal_weights = { damage = -1 }\n")
    settings = recipe_settings(path, "ppo")
    assert settings["gamma"] == 1.0 and isinstance(settings["gamma"], float)
    assert settings["channels"] == (8, 4) and settings["horizon"] == 5
    assert Args(**settings).starts == "opening"
    assert recipe_settings(path, "linear") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[dqn]\n", "dqn"),
        ("[ppo]\nspeed = 1\n", "speed"),
        ("[ppo]\nhistory = 1.5\n", "history 1.5"),
        ("[ppo]\nhistory = true\n", "history True"),
        ('[ppo]\nstarts = "middle"\n', "middle"),
        ("ppo = 1\n", "ppo"),
        ("[ppo\n", "agents.toml"),
    ],
)
def test_what_no_training_knows_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe_settings(write(tmp_path, text), "ppo")


def test_an_unknown_recipe_is_named_with_those_that_ship() -> None:
    with pytest.raises(RecipeError, match="doom_take_cover"):
        recipe_settings("atlantis", "ppo")


def test_the_command_refuses_a_recipe_beside_resume(tmp_path: Path) -> None:
    words = ["train-agent", "--out", str(tmp_path), "--resume", "--recipe", "doom-take-cover"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and "--recipe" in result.stderr
