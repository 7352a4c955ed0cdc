# mypy: disable-error-code="misc"
"""How the backend ``cpu`` cuts masks of many small slices."""

import random
import sys
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_world.kernels.attention import AttnSlices, cpu_plan
from magi_world.kernels.attention.cpu_plan import plan_of
from tests.kernels.test_attention import compare, inputs


def scattered(rows: int, each: int, keys: int, seed: int = 0) -> AttnSlices:
    """Every row sees single keys, no two of which touch."""
    rng = random.Random(seed)
    return AttnSlices.from_list(
        (row, row + 1, 2 * key, 2 * key + 1, 0)
        for row in range(rows)
        for key in rng.sample(range(keys // 2), each)
    )


def lines_run(mask: AttnSlices) -> int:
    """Lines of Python that planning takes, whatever the machine does beside it."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != cpu_plan.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        plan_of(mask, 1)
    finally:
        sys.settrace(before)
    return count


def test_planning_takes_time_in_proportion_to_slices() -> None:
    few, many = lines_run(scattered(128, 16, 1024)), lines_run(scattered(128, 64, 1024))
    assert few > 128 * 16
    assert many < 6 * few


def test_a_row_is_masked_by_its_own_slices() -> None:
    blocks = plan_of(scattered(128, 16, 256), 1)
    shapes = [piece.left.shape for b in blocks for piece in b.pieces if piece.left is not None]
    assert shapes and all(slices <= 16 for slices, _ in shapes)


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(1, 6), st.sampled_from([20, 200]))
def test_scattered_keys(seed: int, each: int, keys: int) -> None:
    mask = scattered(21, each, keys, seed)
    compare(mask, inputs(seed, 21, keys, dtype=torch.float64), seed, "cpu")


@pytest.mark.parametrize("heads", [1, 32])
def test_long_slices_beside_short_ones(heads: int) -> None:
    """Rows of a block share keys that all see; the others lie before, between and behind them."""
    rows = [(0, 40, 300, 700, 0), (0, 40, 10, 100, 3), (0, 40, 720, 760, 2)]
    rows += [(i, i + 1, 150 + 3 * i, 151 + 3 * i, 0) for i in range(40)]
    mask = AttnSlices.from_list([*rows, (41, 45, 0, 800, 1)])
    compare(mask, inputs(1, 45, 800, heads, 1, dtype=torch.float64), 2, "cpu", sinks=())
    pieces = plan_of(mask, heads)[0].pieces
    assert any(piece.left is None for piece in pieces)
    assert any(piece.left is not None for piece in pieces)
