"""The games under examples/ that do not ship: the guide's four commands, in their shortest form."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from magi_world.training.recipe import load_recipe

EXAMPLES = Path(__file__).parents[2] / "examples"
GAMES = {"minigrid": ("minigrid", "EmptyRoom"), "car_racing": ("Box2D", "Circuit")}
QUICK = (
    "vae.steps=2", "dit.steps=2", "outcome.steps=2", "outcome.chunks=64", "vae.batch_size=2",
    "dit.batch_size=1", "dit.sequence=4",
)  # fmt: skip


def magi_world(*arguments: object) -> Any:
    """Run the command in a process of its own and return what it printed as JSON."""
    code = "import sys; from magi_world.cli import main; sys.exit(main())"
    done = subprocess.run(  # Box2D warns when it is imported, and these tests make errors of that
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments), "--json"],
        env={**os.environ, "SDL_VIDEODRIVER": "dummy", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", GAMES)
def test_an_adapter_is_short_and_its_recipe_names_it(name: str) -> None:
    source = (EXAMPLES / name / "game.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40
    classes = [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    assert classes == [GAMES[name][1]]
    recipe = load_recipe(EXAMPLES / name / "recipe.toml")
    assert recipe.card["adapter"] == f"{EXAMPLES / name / 'game.py'}:{GAMES[name][1]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", GAMES)
def test_from_a_game_to_a_score(name: str, tmp_path: Path) -> None:
    package, adapter = GAMES[name]
    pytest.importorskip("minari")
    if package == "minigrid":
        pytest.importorskip("minigrid")
    else:  # imported in the other process only
        found = subprocess.run([sys.executable, "-W", "ignore", "-c", f"import {package}"])
        if found.returncode:
            pytest.skip(f"{package} is not installed")
    folder, world = EXAMPLES / name, tmp_path / "run" / "world"
    played = magi_world(
        "collect", f"{folder / 'game.py'}:{adapter}", "--out", tmp_path / "data",
        "--chunks", {"minigrid": 1900, "car_racing": 2400}[name],
    )  # fmt: skip
    assert played["episodes"] >= 20 and set(played["by_behaviour"]) == {"sticky", "weighted"}
    settings = [word for setting in QUICK for word in ("--set", setting)]
    trained = magi_world(
        "train-world", folder / "recipe.toml", "--data", tmp_path / "data",
        "--out", tmp_path / "run", *settings,
    )  # fmt: skip
    assert trained["dit_steps"] == 2
    magi_world(
        "train-agent", "--world", world, "--out", tmp_path / "agent", "--steps", 16,
        "--set", "reward=world", "--set", "num_slots=4", "--set", "num_steps=4",
    )  # fmt: skip
    rows = magi_world(
        "evaluate-agent", "--world", world, "--agent", "random", "--agent", tmp_path / "agent",
        "--episodes", 1, "--real",
    )  # fmt: skip
    assert [row["where"] for row in rows] == ["real"] * 2
    assert all(row["real_tics"] > 4 for row in rows)
