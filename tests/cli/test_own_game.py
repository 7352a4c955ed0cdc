"""A game of one's own through the whole command line: collect, train, play."""

from pathlib import Path

import pytest

from magi_world.training.episodes import read_episodes
from tests.cli.conftest import Run
from tests.training.toy import RECIPE

ADAPTER = '''
"""A light that goes on and off; off pays."""
import gymnasium
import numpy as np
from magi_world.envs import GymnasiumGame


class Lamp(gymnasium.Env):
    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Box(0, 255, (16, 16, 3), np.uint8)
    render_mode = None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.on = 30 + int(self.np_random.integers(9)), 0
        return self.show(), {}

    def step(self, action):
        self.on, self.left = int(action), self.left - 1
        return self.show(), 0.25 - 0.5 * self.on, self.left <= 0, False, {}

    def show(self):
        return np.full((16, 16, 3), 30 + 200 * self.on, np.uint8)


class LampGame(GymnasiumGame):
    name, size, fps = "lamp", (32, 32), 35
    actions = {"off": 0, "on": 1, "off again": 0}

    def make(self):
        return Lamp()
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Adapter and recipe, as one would write them."""
    (tmp_path / "game.py").write_text(ADAPTER, encoding="utf-8")
    recipe = RECIPE.replace('name = "toy"', 'name = "lamp"\nadapter = "game.py:LampGame"')
    recipe = recipe.replace('["rest", "left", "right"]', '["off", "on", "off again"]')
    recipe = recipe.replace("[0.0, 4.0]", "[-1.0, 1.0]").replace('"rest" = ["wait"]\n', "")
    recipe = recipe.replace('"left" = ["go left", "to the left"]', '"on" = ["shine"]')
    (tmp_path / "lamp.toml").write_text(recipe, encoding="utf-8")
    return tmp_path


def test_from_a_game_to_a_score(run: Run, folder: Path) -> None:
    pytest.importorskip("minari")
    game = f"{folder / 'game.py'}:LampGame"
    collected = run("collect", game, "--out", folder / "data", "--chunks", 220, "--json")
    assert collected.code == 0, collected.err
    assert collected.data["dataset"] == "lamp-v0"
    assert set(collected.data["by_behaviour"]) == {"sticky"}
    episode = next(read_episodes(folder / "data" / "lamp-v0"))
    assert episode.rewards.min() >= -1.0 and episode.rewards.min() < 0 < episode.rewards.max()

    recipe, world = folder / "lamp.toml", folder / "run" / "world"
    trained = run("train-world", recipe, "--data", folder / "data", "--out", folder / "run")
    assert trained.code == 0, trained.err
    # with an agent that sees through the world, a second collection goes on
    again = run(
        "collect", game, "--out", folder / "data", "--chunks", 60, "--first-episode", 500,
        "--name", "lamp-second-v0", "--agent", "random", "--agent-share", 4, "--world", world,
        "--json",
    )  # fmt: skip
    assert again.code == 0, again.err
    chunks = {name: row["chunks"] for name, row in again.data["by_behaviour"].items()}
    assert chunks["agent"] > 2 * chunks["sticky"] > 0
    refused = run("collect", game, "--out", folder / "data", "--agent-share", 4)
    assert refused.code == 2 and "goes with --agent" in refused.err

    agent = folder / "agent"
    learned = run(
        "train-agent", "--world", world, "--out", agent, "--steps", 16, "--set", "reward=world",
        "--set", "num_slots=4", "--set", "num_steps=4",
    )  # fmt: skip
    assert learned.code == 0, learned.err
    arguments = ("evaluate-agent", "--world", world, "--agent", "noop", "--agent", agent)
    played = run(*arguments, "--episodes", 2, "--json")
    assert played.code == 0, played.err
    noop = next(row for row in played.data if (row["agent"], row["where"]) == ("noop", "real"))
    assert 7.5 <= noop["mean"] <= 9.75  # a quarter a step, 30 to 38 steps
    assert noop["real_tics"] == 2 * 4 + 4 * sum(noop["returns"])

    # elsewhere, where the card's path leads nowhere, the game is named by hand
    (folder / "game.py").rename(folder / "moved.py")
    lost = run(*arguments, "--episodes", 2, "--real")
    assert lost.code == 2 and "game.py" in lost.err
    moved = f"{folder / 'moved.py'}:LampGame"
    found = run(*arguments, "--episodes", 2, "--real", "--game", moved)
    assert found.code == 0, found.err


def test_the_wrong_game_is_named(run: Run, folder: Path, tiny_world_path: Path) -> None:
    game = f"{folder / 'game.py'}:LampGame"
    result = run(
        "evaluate-agent", "--world", tiny_world_path, "--agent", "noop", "--real", "--game", game
    )
    assert result.code == 2 and "'off again'" in result.err
    for arguments in (("collect", f"{folder / 'game.py'}:Lamp", "--out", folder / "data"),):
        result = run(*arguments)
        assert result.code == 2 and "a game needs" in result.err
    result = run(
        "collect", game, "--out", folder / "data", "--chunks", 20, "--agent", "random",
        "--world", tiny_world_path,
    )  # fmt: skip
    assert result.code == 2 and "'off again'" in result.err and not (folder / "data").exists()
    (folder / "game.py").unlink()
    result = run("train-world", folder / "lamp.toml", "--data", folder, "--out", folder / "run")
    assert result.code == 2 and "no file 'game.py' beside the recipe" in result.err
