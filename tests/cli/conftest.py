"""Running the command line inside the test process."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from magi_world.cli import main
from magi_world.envs import real_env
from tests.evaluation.fake_game import FakeGame


@dataclass(frozen=True)
class Ran:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `magi-world` with these arguments."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: object) -> Ran:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return run


@pytest.fixture
def fake_game(monkeypatch: pytest.MonkeyPatch) -> type[FakeGame]:
    """The fake game stands behind the tiny world."""
    monkeypatch.setitem(real_env.GAMES, "tiny", FakeGame)
    return FakeGame
