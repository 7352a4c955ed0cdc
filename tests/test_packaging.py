"""The root folders, the links to them, the build table and the files of a release agree."""

import os
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
TABLE = PYPROJECT["tool"]["setuptools"]
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
LINKED = ("agents", "envs", "kernels")


def repository_files() -> list[Path]:
    """Every file that git tracks or would track, relative to the root; links left out."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    names = [Path(name) for name in done.stdout.split("\0") if name]
    return [name for name in names if (ROOT / name).is_file() and not (ROOT / name).is_symlink()]


def test_links_point_at_the_root_folders() -> None:
    for name in LINKED:
        link = ROOT / "magi_world" / name
        assert link.resolve() == ROOT.resolve() / name
        assert not (ROOT / name).is_symlink()
        assert os.readlink(link) == os.path.join("..", name), "a link must stay relative"


def test_every_package_is_in_the_build_table() -> None:
    found = {
        ".".join(Path(folder).relative_to(ROOT).parts)
        for folder, _, files in os.walk(ROOT / "magi_world", followlinks=True)
        if "__init__.py" in files
    }
    assert found == set(TABLE["packages"])


def test_every_module_lies_in_a_package() -> None:
    for folder, _, files in os.walk(ROOT / "magi_world", followlinks=True):
        if any(name.endswith(".py") for name in files):
            assert "__init__.py" in files, f"{folder} holds modules but no __init__.py"


def test_every_data_file_is_in_the_build_table() -> None:
    """A file inside the package that is no module ships only when a pattern names it."""
    places = {
        package: TABLE["package-dir"].get(package, package.replace(".", "/"))
        for package in TABLE["package-data"]
    }
    patterns = [
        (place, pattern)
        for package, place in places.items()
        for pattern in TABLE["package-data"][package]
    ]
    for path in repository_files():
        if path.parts[0] not in ("magi_world", *LINKED) or path.suffix == ".py":
            continue
        shipped = any(
            path.is_relative_to(place)
            and len(path.relative_to(place).parts) == len(Path(pattern).parts)
            and fnmatch(path.relative_to(place).as_posix(), pattern)
            for place, pattern in patterns
        )
        assert shipped, f"{path} is in the repository but in no wheel"


def test_package_is_marked_as_typed() -> None:
    assert (ROOT / "magi_world" / "py.typed").is_file()


def test_shipped_worlds_stay_small() -> None:
    worlds = [card.parent for card in (ROOT / "magi_world" / "worlds").glob("*/world.json")]
    assert worlds
    for world in worlds:
        megabytes = sum(file.stat().st_size for file in world.iterdir() if file.is_file()) / 1e6
        assert megabytes <= 24, f"{world.name}: {megabytes:.1f} MB of weights, card and bank"


def test_no_file_names_a_machine() -> None:
    """Absolute paths of somebody's disk, and paths that lead out of the repository, stay out."""
    machine = re.compile(r"(?<![\w.>])/(?:root|home|work|opt|Users)/\w|file://|\.\./shared\b")
    for path in repository_files():
        if path == Path("tests/test_packaging.py"):  # this pattern
            continue
        try:
            text = (ROOT / path).read_text(encoding="utf-8")
        except UnicodeDecodeError:  # weights, pictures
            continue
        found = machine.search(text)
        assert found is None, f"{path}: {text[found.start() :][:60]!r}" if found else ""


def test_constraints_name_versions_and_no_index() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    for line in pins:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line), line
    assert "torch==2.13.0" in pins
    names = [canonicalize_name(line.split("==")[0]) for line in pins]
    assert len(names) == len(set(names))


def _closure(requirements: list[str]) -> set[str]:
    """Names of everything that these requirements install, read from the installed packages."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [Requirement(text) for text in requirements]
    while todo:
        need = todo.pop()
        name = canonicalize_name(need.name)
        key = (name, frozenset(need.extras))
        if key in seen:
            continue
        try:
            inner = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:  # not for this platform
            continue
        seen.add(key)
        todo += [
            one
            for one in inner
            if one.marker is None
            or any(one.marker.evaluate({"extra": extra}) for extra in need.extras | {""})
        ]
    return {name for name, _ in seen}


def test_constraints_pin_all_that_make_installs() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}
    chosen = [
        text
        for extra in {"test", *Requirement(EXTRAS["test"][0]).extras}
        for text in EXTRAS[extra]
        if not text.startswith("magi-world")
    ]
    needed = _closure(PYPROJECT["project"]["dependencies"] + chosen)
    # PyTorch's CUDA builds bring their libraries at exact versions by themselves.
    needed = {name for name in needed if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert needed - pinned == set()


def test_dev_is_every_extra_but_the_gpu_kernels() -> None:
    combined = Requirement(EXTRAS["dev"][0])
    assert combined.name == PYPROJECT["project"]["name"]
    assert combined.extras == set(EXTRAS) - {"dev", "cuda", "flash2"}
    assert any(Requirement(text).name == "triton" for text in EXTRAS["dev"][1:])


def test_lower_bounds_only() -> None:
    """Pins belong to constraints.txt: a library that caps its dependencies blocks its users."""
    for text in PYPROJECT["project"]["dependencies"]:
        assert {one.operator for one in Requirement(text).specifier} == {">="}, text


def test_version_is_told_once() -> None:
    import magi_world

    assert magi_world.__version__ == PYPROJECT["project"]["version"]
