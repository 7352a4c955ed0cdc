"""What the README prints can be typed: its examples, commands, targets and links."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAGI1 = README.partition("## For users of MAGI-1\n")[2].partition("\n## ")[0]
"""a section whose blocks belong together"""


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
