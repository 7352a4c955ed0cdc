"""`--golden-dir` runs the same suite on another folder, and that folder decides the result."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.golden.cases import DATA

NAMES = ["rope_d24_T1_H4_W4_off0", "timesteps_and_sequences", "t5_encoder"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three cases of the public set as a set of their own."""
    index = json.loads((DATA / "index.json").read_text())
    index["cases"] = [entry for entry in index["cases"] if entry["name"] in NAMES]
    index["number_of_cases"] = len(NAMES)
    for entry in index["cases"]:
        weights = json.loads((DATA / entry["meta"]).read_text()).get("weights")
        for file in filter(None, (entry["meta"], entry["file"], weights)):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            shutil.copy(DATA / file, tmp_path / file)
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    suite = Path(__file__).parent / "test_golden.py"
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(suite)]
    root = Path(__file__).parents[2]
    command += ["--golden-dir", str(folder)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def edit(folder: Path, kind: str, name: str, **changes: Any) -> None:
    path = folder / kind / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_another_folder(folder: Path) -> None:
    done = run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 passed" in done.stdout
    for name in NAMES:
        assert f"[{name}]" in done.stdout

    edit(folder, "rope", NAMES[0], total_rows=17)
    done = run(folder)
    assert done.returncode == 1
    assert "1 failed, 2 passed" in done.stdout
    assert "total_rows: 16, reference 17" in done.stdout


def test_a_folder_without_an_index_is_named(tmp_path: Path) -> None:
    done = run(tmp_path / "absent")
    assert done.returncode == 4
    assert "holds no index.json" in done.stdout + done.stderr
