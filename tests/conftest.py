"""Fixtures that several folders use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from magi_world.world import World, load
from tests.tiny_world import make_tiny_world

if not torch.cuda.is_available():
    # Triton kernels run in its interpreter, which has to be chosen before triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

# timings depend on the machine, and the machine may be busy
settings.register_profile("magi_world", deadline=None)
settings.load_profile("magi_world")


@pytest.fixture(scope="session")
def tiny_world_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the tiny world on disk."""
    folder: Path = tmp_path_factory.mktemp("worlds") / "tiny"
    make_tiny_world().save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_doom_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny world under Doom's name, by which the twin finds its real game."""
    folder: Path = tmp_path_factory.mktemp("worlds") / "tiny_doom"
    world = make_tiny_world()
    world.card["name"] = "doom-take-cover"
    world.save(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_world(tiny_world_path: Path) -> World:
    """The tiny world, loaded; tests do not change it."""
    return load(tiny_world_path)


@pytest.fixture(scope="session", autouse=True)
def headless() -> Iterator[None]:
    """Windows open without a display."""
    patch = pytest.MonkeyPatch()
    patch.setenv("SDL_VIDEODRIVER", "dummy")
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def few_threads() -> None:
    """Tensors in tests are tiny: one thread is fastest and steady."""
    torch.set_num_threads(1)
