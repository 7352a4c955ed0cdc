"""Checkpoints in the published layout, made once."""

import shutil
from pathlib import Path

import pytest

from tests.checkpoints.official import write_official


@pytest.fixture(scope="session")
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders by kind: "tiny", "tiny-distill" and "tiny-distill-fp8"; tests do not change them."""
    place: Path = tmp_path_factory.mktemp("official")
    kinds = ("tiny", "tiny-distill", "tiny-distill-fp8")
    return {kind: write_official(place / kind, kind) for kind in kinds}


@pytest.fixture
def broken(official: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the tiny base checkpoint that a test may damage."""
    folder: Path = tmp_path / "broken"
    shutil.copytree(official["tiny"], folder)
    return folder
