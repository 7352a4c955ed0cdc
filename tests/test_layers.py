"""Imports point one way: kernels <- core <- envs <- agents <- app."""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "magi_world"
LAYERS = ["kernels", "core", "envs", "agents", "app"]
APP = {"cli", "play"}

# The package's own __init__ registers the environments and resolves envs and agents lazily.
EXEMPT = {"magi_world.__init__"}

# What belongs to environments and agents; the core meets it as protocols and callables only.
ABOVE_CORE = {"gymnasium", "pettingzoo", "stable_baselines3", "vizdoom"}


def layer(module: str) -> int:
    """Height of a module of the package; a name that is no layer of its own is core."""
    part = [*module.split("."), "core"][1]
    return LAYERS.index(part if part in LAYERS else "app" if part in APP else "core")


def imported(node: ast.AST) -> list[str]:
    """Full names that a statement imports, inside functions too."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and node.args:
        function = ast.unparse(node.func).split(".")[-1]
        name = node.args[0]
        if function in ("import_module", "__import__") and isinstance(name, ast.Constant):
            return [str(name.value)]
    return []


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Name and syntax tree of every module of the package."""
    for folder, _, files in os.walk(PACKAGE, followlinks=True):
        for path in (Path(folder, name) for name in files if name.endswith(".py")):
            here = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            if here not in EXEMPT:
                yield here, ast.parse(path.read_text(encoding="utf-8"))


def wrong_imports(here: str, tree: ast.Module) -> list[str]:
    """Imports of a module that point up, or out of the core to what belongs above it."""
    names = [name for node in ast.walk(tree) for name in imported(node)]
    ours = [name for name in names if name.split(".")[0] == PACKAGE.name]
    wrong = [name for name in ours if layer(name) > layer(here)]
    if layer(here) <= LAYERS.index("core"):
        wrong += [name for name in names if name.split(".")[0] in ABOVE_CORE]
    return wrong


def test_imports_point_down() -> None:
    seen = set()
    for here, tree in modules():
        seen.add(LAYERS[layer(here)])
        assert wrong_imports(here, tree) == [], here
    assert seen == set(LAYERS)


@pytest.mark.parametrize(
    ("here", "line"),
    [
        ("magi_world.kernels.rope.fused", "from magi_world.config import DiTConfig"),
        ("magi_world.sampling.rollout", "import magi_world.envs.spaces"),
        ("magi_world.sampling.rollout", "from magi_world import envs"),
        ("magi_world.training.loop", "def f():\n    from magi_world.agents import load"),
        ("magi_world.training.loop", "importlib.import_module('magi_world.cli')"),
        ("magi_world.evaluation.report", "import gymnasium as gym"),
        ("magi_world.envs.world_env", "from magi_world.agents.ppo import train"),
        ("magi_world.agents.ppo", "from magi_world.play import server"),
    ],
)
def test_an_import_that_points_up_is_found(here: str, line: str) -> None:
    assert wrong_imports(here, ast.parse(line))


@pytest.mark.parametrize(
    ("here", "line"),
    [
        ("magi_world.sampling.rollout", "from magi_world.kernels.attention import attention"),
        ("magi_world.envs.world_env", "import gymnasium, magi_world.sampling.rollout"),
        ("magi_world.cli.train_agent", "from magi_world.agents import ppo"),
        ("magi_world.cli.train", "from magi_world.envs.doom import TakeCoverGame"),
    ],
)
def test_an_import_that_points_down_is_fine(here: str, line: str) -> None:
    assert wrong_imports(here, ast.parse(line)) == []
