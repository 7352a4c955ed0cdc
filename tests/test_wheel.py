"""The wheel, as a user gets it: built, put into an empty environment, used from elsewhere."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP = ("-m", "pip", "--disable-pip-version-check")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEP_THE_WORLD = """
import sys
from pathlib import Path

import gymnasium as gym
import magi_world

assert not Path(magi_world.__file__).is_relative_to({root!r}), magi_world.__file__

world = magi_world.load("doom-take-cover", device="cpu")
rollout = world.rollout(batch_size=2, seeds=[0, 1])
rollout.reset()
chunk = rollout.step(["strafe left", "strafe right"])
assert tuple(chunk.frames.shape) == (2, 4, 64, 64, 3)

env = gym.make("magi_world/DoomTakeCover-v0", actions="discrete")
env.reset(seed=0)
frames, reward, terminated, truncated, info = env.step(1)
assert frames.shape == (4, 64, 64, 3)
assert info["prompt"] == world.card["prompts"][1]

agent = magi_world.agents.load("doom-take-cover")
assert agent.observations in ("frames", "latent")

absent = {{"vizdoom", "minari", "scipy", "av"}} & set(sys.modules)
assert not absent, absent
print("stepped")
"""


def call(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the checkout; its output is the message when it fails."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that the checkout stays clean."""
    source = tmp_path_factory.mktemp("source") / "magi_world"
    junk = shutil.ignore_patterns(
        ".git", ".venv", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "runs", "data"
    )
    shutil.copytree(ROOT, source, symlinks=True, ignore=junk)
    target = tmp_path_factory.mktemp("wheel")
    call(sys.executable, *PIP, "wheel", "--no-deps", "-w", target, source, cwd=target)
    (built,) = target.glob("*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"magi_world", f"{wheel.name.split('-py3')[0]}.dist-info"}
    assert "magi_world/py.typed" in names
    for folder in ("agents", "envs", "kernels/attention"):
        assert f"magi_world/{folder}/__init__.py" in names
    for pattern in (
        r"magi_world/worlds/doom_take_cover/world\.json",
        r"magi_world/worlds/doom_take_cover/\w+\.safetensors",
        r"magi_world/worlds/doom_take_cover/agent/agent\.json",
        r"magi_world/worlds/doom_take_cover/agent/agent\.safetensors",
        r"magi_world/training/recipes/doom_take_cover\.\w+",
    ):
        assert any(re.fullmatch(pattern, name) for name in names), pattern
    assert not [name for name in names if name.endswith(".pyc")]


def test_wheel_steps_the_world_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    call(sys.executable, "-m", "venv", "empty", cwd=tmp_path)
    python = tmp_path / "empty" / "bin" / "python"
    constraints = ROOT / "constraints.txt"
    # torch alone first, as the Makefile does; TORCH_INDEX is its index there and here.
    index = os.environ.get("TORCH_INDEX", "")
    extra = ("--extra-index-url", index) if index else ()
    call(python, *PIP, "install", "-c", constraints, *extra, "torch", cwd=tmp_path)
    call(python, *PIP, "install", "-c", constraints, wheel, cwd=tmp_path)
    code = STEP_THE_WORLD.format(root=str(ROOT.resolve()))
    assert call(python, "-c", code, cwd=tmp_path).splitlines()[-1] == "stepped"
    listed = call(tmp_path / "empty" / "bin" / "magi-world", "worlds", cwd=tmp_path)
    assert "doom-take-cover" in listed
