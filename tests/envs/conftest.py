"""Worlds that several files of tests share."""

import pytest

from tests.tiny_duel import make_tiny_duel


@pytest.fixture(scope="session")
def duel(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of the tiny duel; tests do not change it."""
    folder = tmp_path_factory.mktemp("worlds") / "duel"
    make_tiny_duel().save(folder)
    return str(folder)
