"""The toy game's data, recipe and one whole run, shared by the tests of training."""

from pathlib import Path

import pytest

from magi_world.training.bank import encoded_store
from magi_world.training.recipe import Recipe, load_recipe
from magi_world.training.store import Store
from magi_world.world import World, load
from tests.training.toy import (
    RECIPE,
    record,
    train,
)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 episodes; the seeds of numbers 19 and 39 are held out."""
    return record(tmp_path_factory.mktemp("data"), [*range(22), 38, 39])


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    path = tmp_path_factory.mktemp("recipe") / "toy.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return load_recipe(path)


@pytest.fixture(scope="session")
def trained(recipe: Recipe, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run from beginning to end."""
    out: Path = tmp_path_factory.mktemp("run") / "whole"
    train(recipe, data, out)
    return out


@pytest.fixture(scope="module")
def world(trained: Path) -> World:
    return load(trained / "world")


@pytest.fixture(scope="module")
def store(trained: Path) -> Store:
    return encoded_store(load(trained / "world"), trained)
