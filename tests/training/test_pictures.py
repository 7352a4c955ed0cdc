"""Area averages."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magi_world.envs.doom import downscale
from magi_world.training.pictures import shrink


def noise(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def test_it_is_the_mean_of_the_pixels_below() -> None:
    pictures = noise(3, 2, 12, 8, 3)
    blocks = pictures.astype(int).reshape(3, 2, 4, 3, 4, 2, 3).sum(axis=(3, 5))
    np.testing.assert_array_equal(shrink(pictures, 4, 4), (2 * blocks + 6) // 12)


def test_doom_is_shrunk_the_same_way() -> None:
    screen = noise(240, 320, 3)
    np.testing.assert_array_equal(shrink(screen, 64, 64), downscale(screen))


def test_a_picture_of_the_size_is_left_alone() -> None:
    picture = noise(4, 4, 3)
    assert shrink(picture, 4, 4) is picture


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(0, 255))
def test_flat_stays_flat(height: int, width: int, side: int, value: int) -> None:
    shrunk = shrink(np.full((height, width, 3), value, np.uint8), side, side)
    assert shrunk.shape == (side, side, 3) and (shrunk == value).all()


@pytest.mark.parametrize(("values", "mean"), [((1, 2), 2), ((0, 1), 1), ((3, 3), 3)])
def test_halves_are_rounded_up(values: tuple[int, int], mean: int) -> None:
    picture = np.array(values, np.uint8).reshape(1, 2, 1).repeat(3, axis=2)
    assert (shrink(picture, 1, 1) == mean).all()
