"""What the README prints can be typed: its examples, commands, targets and links."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from magi_world.cli import main
from tests.tiny_duel import make_tiny_duel

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAGI1 = README.partition("## For users of MAGI-1\n")[2].partition("\n## ")[0]
"""a section whose blocks belong together"""
SLOTS = README.partition("## Many slots, branches, plans\n")[2].partition("\n## ")[0]
"""the section with the tables of features"""


def blocks(language: str, text: str = README) -> list[str]:
    """Code blocks of the README, or of a part of it, in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def commands(program: str) -> list[str]:
    """Command lines of the README that start this program, comments cut off, each once."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    inline = re.findall(rf"`({program} [^`]+)`", README)
    words = [shlex.split(line, comments=True) for line in [*lines, *inline]]
    return list(dict.fromkeys(shlex.join(line) for line in words if line[:1] == [program]))


def run(code: str, *arguments: str, cwd: Path) -> str:
    """Run code in a fresh interpreter outside the repository; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_first_example_fits_on_the_screen() -> None:
    lines = [line for line in blocks("python")[0].splitlines() if line]
    assert len(lines) == 10
    assert README.index("```python") < README.index("\n## ")


@pytest.mark.parametrize(
    "example", blocks("python", README.replace(MAGI1, "")), ids=("environment", "rollout", "batch")
)
def test_example_runs_as_printed(example: str, tmp_path: Path) -> None:
    printed = run(example, cwd=tmp_path)
    assert bool(printed) == ("print(" in example)


def test_the_table_of_agents_is_the_one_that_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["evaluate-agent", "--table", "--markdown"]) == 0
    printed = capsys.readouterr().out
    assert printed in README, "type `magi-world evaluate-agent --table --markdown`"


@pytest.mark.parametrize(
    "folder", sorted((ROOT / "docs" / "results" / "compared").glob("*")), ids=lambda path: path.name
)
def test_comparisons_of_settings_are_those_that_are_printed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate-agent", "--table", "--seeds", "validation", "--markdown", "--results"]
    assert main([*command, str(folder)]) == 0
    assert capsys.readouterr().out in README


def test_magi1_section_runs_as_printed(tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    (tmp_path / "runs").mkdir()
    (script,) = blocks("bash", MAGI1)
    lines = [line for line in script.splitlines() if not line.startswith("pip ")]
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(lines)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    made = {path.name for path in (tmp_path / "runs").glob("*.mp4")}
    assert made == {"cat.mp4", "lights.mp4", "more.mp4"}
    (example,) = blocks("python", MAGI1)
    run(example, cwd=tmp_path)


def feature_lines() -> list[str]:
    """The lines of Python in the tables of features."""
    rows = [line for line in SLOTS.splitlines() if line.startswith("| ")]
    lines = [line for row in rows for line in re.findall(r"`([^`]+)`", row.rsplit(" | ", 1)[1])]
    return [line for line in lines if not line.startswith(("magi-world ", "python "))]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the lines speak of."""
    import gymnasium as gym

    import magi_world
    from magi_world.agents.guide import Guide
    from magi_world.agents.planner import Planner

    duel = tmp_path_factory.mktemp("worlds") / "duel"
    make_tiny_duel().save(duel)
    world = magi_world.load("doom-take-cover")
    rollout = world.rollout(1, seeds=[0])
    rollout.reset()
    env = gym.make("magi_world/DoomTakeCover-v0")
    env.reset(seed=0)
    model: Any = torch.nn.Linear(1, 1)  # of which the features of texts and pictures are asked
    model.get_text_features = lambda words: words
    model.get_image_features = lambda pixels: pixels
    return {
        "gym": gym, "magi_world": magi_world, "Planner": Planner, "world": world, "env": env,
        "rollout": rollout, "duel": str(duel), "model": model,
        "Guide": Guide, "agent": magi_world.agents.load("doom-take-cover"),
        "processor": lambda text, **_: {"words": torch.ones(len(text), 2)},
        "envs": gym.make_vec("magi_world/DoomTakeCover-v0", num_envs=2),
        "voters": magi_world.envs.parallel_env("doom-take-cover", arbitration="vote"),
    }  # fmt: skip


@pytest.mark.parametrize("line", feature_lines())
def test_a_feature_is_the_line_that_it_prints(
    line: str, names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "RayVectorEnv" in line:
        pytest.skip("tests/envs/test_ray_env.py starts Ray")
    eval(line, dict(names))


def test_every_example_is_in_the_readme_with_options_that_it_has() -> None:
    lines = [line for line in commands("python") if "examples/" in line]
    printed = {shlex.split(line)[1]: line for line in lines}
    scripts = {f"examples/{path.name}" for path in (ROOT / "examples").glob("*.py")}
    assert set(printed) == scripts - {"examples/demo.py"}  # which `make demo` runs
    for script, line in printed.items():
        text = (ROOT / script).read_text(encoding="utf-8")
        for word in shlex.split(line):
            assert not word.startswith("--") or f'"{word}"' in text


@pytest.mark.parametrize("line", commands("magi-world"))
def test_command_exists_with_its_options(line: str, tmp_path: Path) -> None:
    words = line.split()
    verb = words[1:3] if words[1] == "bench" else words[1:2]
    help_text = run("from magi_world.cli import main; main()", *verb, "--help", cwd=tmp_path)
    for word in words:
        if word.startswith("--"):
            assert word in help_text


@pytest.mark.parametrize("line", commands("make"))
def test_make_target_exists(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in line.split()[1:]:
        name, _, value = word.partition("=")
        assert re.search(rf"^(export )?{name} \?=" if value else rf"^{name}:", makefile, re.M)


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    for target in targets:
        if "://" not in target:
            assert (ROOT / target).is_file(), target


def test_file_tree_exists() -> None:
    (tree,) = re.findall(r"^## Files\n\n((?: {4}.*\n)+)", README, flags=re.MULTILINE)
    parents = {4: ROOT}  # by indentation, which grows by two a level
    for line in tree.splitlines():
        indent = len(line) - len(line.lstrip())
        path = parents[indent] / line.split()[0]
        parents[indent + 2] = path
        assert path.exists(), path


@pytest.mark.parametrize("name", ["doom-take-cover", "pong-duel"])
def test_a_card_says_what_looks_wrong_with_pictures_that_there_are(name: str) -> None:
    import magi_world

    limits = " ".join(magi_world.load(name).card["known_limits"])
    for pattern in re.findall(r"docs/images/([\w*]+\.png)", limits):
        assert (ROOT / "docs" / "images" / pattern).is_file()
    assert limits
