"""Bright spots: counted by size, found where the other picture is bright nearby."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magi_world.evaluation.spots import BRIGHT, NEAR, SIZES, count_spots

DARK = np.full((32, 32, 3), 80, np.uint8)


def with_square(row: int, column: int, side: int, colour: int = 255) -> np.ndarray:
    picture = DARK.copy()
    picture[row : row + side, column : column + side, 0] = colour
    return picture


@pytest.mark.parametrize(("side", "kind"), [(1, 0), (2, 1), (3, 2), (5, 3), (9, 4)])
def test_spots_are_counted_by_size(side: int, kind: int) -> None:
    real, *others = count_spots(with_square(10, 10, side), with_square(10, 10, side), DARK)
    expected = [int(i == kind) for i in range(len(SIZES))]
    assert real.tolist() == expected == others[0].tolist()
    assert others[1].sum() == 0


@given(st.integers(-6, 6), st.integers(-6, 6))
def test_a_spot_is_found_within_reach(down: int, right: int) -> None:
    table = count_spots(with_square(15, 15, 1), with_square(15 + down, 15 + right, 1))
    assert table[1].sum() == (max(abs(down), abs(right)) <= NEAR)


def test_corners_connect_and_dim_pixels_do_not_count() -> None:
    real = with_square(4, 4, 1)
    real[5, 5] = 255
    real[20, 20] = BRIGHT  # just bright enough
    real[25, 25] = BRIGHT - 1
    assert count_spots(real)[0].tolist() == [2, 0, 0, 0, 0]
    assert count_spots(np.full((64, 64, 3), 255, np.uint8))[0].tolist() == [0, 0, 0, 0, 1]
