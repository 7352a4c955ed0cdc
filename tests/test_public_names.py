"""What `magi_world` and `magi_world.envs` say is public exists, and is resolved when asked for."""

import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import magi_world
import magi_world.envs

PACKAGES = [magi_world, magi_world.envs]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_resolves(package: ModuleType) -> None:
    assert sorted(set(package.__all__)) == sorted(package.__all__)
    for name in package.__all__:
        value = getattr(package, name)
        assert name in dir(package)
        if not inspect.ismodule(value) and name != "__version__":
            assert value.__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_what_is_not_underscored_is_public(package: ModuleType) -> None:
    names = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert names <= set(package.__all__)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_an_unknown_name_is_an_attribute_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'nothing'"):
        package.__getattr__("nothing")


def test_load_is_the_one_of_the_core() -> None:
    assert magi_world.load is importlib.import_module("magi_world.world").load


@pytest.mark.parametrize(
    "name", ["load", "agents", "envs.WorldEnv", "envs.RealEnv", "envs.PromptSpace", "errors"]
)
def test_a_name_is_enough_after_the_import(name: str, tmp_path: Path) -> None:
    """Each name resolves in a fresh interpreter, with no other import before it."""
    code = f"import magi_world, sys; assert 'torch' not in sys.modules; magi_world.{name}"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
