"""The calibration plot."""

import sys
from pathlib import Path

import numpy as np
import pytest

from magi_world.errors import MissingPackage
from magi_world.evaluation.metrics import calibration
from magi_world.evaluation.one_step_ahead import EDGES
from magi_world.evaluation.plots import plot_calibration


def test_bins_without_events_are_drawn_too(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    probability = 10 ** rng.uniform(-6, 0, 500)
    rows = calibration(probability, rng.random(500) < probability, EDGES)
    assert any(row["events"] == 0 for row in rows) and any(row["events"] for row in rows)
    plot_calibration(tmp_path / "a.png", rows, "a title")
    plot_calibration(tmp_path / "none.png", [], "nothing was measured")
    for name in ("a.png", "none.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_missing_matplotlib_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackage, match=r"magi-world\[eval\]"):
        plot_calibration(tmp_path / "a.png", [], "")
