"""The precision of a training is chosen by looking and measuring."""

import pytest
import torch

from magi_world.training import precision


@pytest.mark.parametrize("wanted", ["float32", "bfloat16"])
def test_a_named_precision_is_taken(wanted: str) -> None:
    assert precision.choose_precision(wanted) == wanted


@pytest.mark.parametrize(
    ("units", "seconds", "chosen"),
    [(False, 0.1, "float32"), (True, 0.1, "bfloat16"), (True, 0.9, "float32")],
)
def test_auto_needs_units_and_a_gain(
    monkeypatch: pytest.MonkeyPatch, units: bool, seconds: float, chosen: str
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16_units", lambda: units)
    times = {torch.float32: 1.0, torch.bfloat16: seconds}
    monkeypatch.setattr(precision, "_seconds", times.__getitem__)
    assert precision.choose_precision("auto") == chosen


def test_it_can_be_measured_here() -> None:
    assert isinstance(precision.has_bfloat16_units(), bool)
    assert precision._seconds(torch.float32) > 0
