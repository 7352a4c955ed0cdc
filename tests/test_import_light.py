"""Importing the package is cheap, and the core install is enough to import all of it."""

import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import magi_world

# Import names of what the extras bring. Pillow comes along with moviepy, PyYAML with several.
OPTIONAL = [
    "ale_py",
    "av",
    "bs4",
    "cmaes",
    "diffusers",
    "flash_attn",
    "ftfy",
    "h5py",
    "huggingface_hub",
    "imageio",
    "matplotlib",
    "minari",
    "moviepy",
    "multi_agent_ale_py",
    "PIL",
    "pygame",
    "ray",
    "rliable",
    "scipy",
    "sentencepiece",
    "stable_baselines3",
    "starlette",
    "torchmetrics",
    "torchrl",
    "transformers",
    "triton",
    "uvicorn",
    "vizdoom",
    "yaml",
    "zstandard",
]


def every_module() -> list[str]:
    """Names of all modules of the package, but those that triton decorates: ops import them."""
    found = [module.name for module in pkgutil.walk_packages(magi_world.__path__, "magi_world.")]
    return [name for name in found if not name.endswith(("__main__", "triton_kernels"))]


def run(code: str, cwd: Path) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_brings_nothing_heavy(tmp_path: Path) -> None:
    code = "import json, sys, magi_world; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.split(".")[0] for name in json.loads(run(code, tmp_path))}
    assert loaded & {"torch", "tensorboard", *OPTIONAL} == set()


def test_import_registers_the_environments(tmp_path: Path) -> None:
    code = (
        "import gymnasium, magi_world;"
        "print([name for name in gymnasium.registry if name.startswith('magi_world/')])"
    )
    printed = run(code, tmp_path)
    assert "magi_world/DoomTakeCover-v0" in printed
    assert "magi_world/DoomTakeCoverReal-v0" in printed


def test_every_module_imports_without_the_extras(tmp_path: Path) -> None:
    """A None in sys.modules makes an import fail as it does where the package is absent."""
    names = every_module()
    assert "magi_world.envs.world_env" in names
    # torch asks for some packages itself and copes without them, so it comes first.
    code = (
        "import importlib, sys, torch\n"
        f"optional = {OPTIONAL}\n"
        "for name in optional:\n"
        "    for module in [m for m in sys.modules if m.split('.')[0] == name]:\n"
        "        del sys.modules[module]\n"
        "    sys.modules[name] = None\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
    )
    run(code, tmp_path)
