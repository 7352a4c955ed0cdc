"""Rotary embedding: it is relative, and its time axis never wears out."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from magi_world.errors import ConfigError
from magi_world.kernels.rope import rotate
from magi_world.models.rope import LearnableRope, axis_positions, rotary_angles

FAR = [10, 1_000_000, 40_000_000]  # latent frames; the last is two weeks of play


def table(first: int, width: int = 1) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return LearnableRope(32).table(torch.tensor([first]), width, 4, 4)


def draw(seed: int, tokens: int) -> Tensor:
    return torch.randn(tokens, 2, 32, generator=torch.Generator().manual_seed(seed))


@given(
    st.sampled_from(FAR), st.integers(-7, 7), st.integers(0, 99), st.sampled_from(["time", "grid"])
)
def test_scores_depend_on_differences_only(first: int, gap: int, seed: int, what: str) -> None:
    q, k = draw(seed, 16), draw(seed + 1, 16)

    def scores(base: int) -> Tensor:
        rotated_q = rotate(q, *table(base + max(gap, 0)))
        rotated_k = rotate(k, *table(base + max(-gap, 0)))
        if what == "time":  # the same place in the picture
            return (rotated_q * rotated_k).sum(-1)
        return torch.einsum("qhd,khd->hqk", rotated_q, rotated_k)

    # a float32 angle in [0, 2 pi) is off by at most 2.4e-7
    torch.testing.assert_close(scores(first), scores(0), rtol=0, atol=1e-5)


@given(st.integers(0, 10**9))
def test_time_angles_are_exact_at_any_age(first: int) -> None:
    bands = LearnableRope(32).bands.detach()
    angles = rotary_angles(bands, torch.tensor([first]), 1, 2, 2)[0, : len(bands)]
    for band, angle in zip(bands.tolist(), angles.tolist(), strict=True):
        turn = math.fmod(float(first * Fraction(band)), 2 * math.pi)  # one rounding to float64
        away = abs(turn - angle)
        assert min(away, 2 * math.pi - away) < 1e-6


def test_rotation_keeps_lengths_and_the_last_channels() -> None:
    x = draw(0, 16)
    turned = rotate(x, *table(12345))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned[..., 24:], x[..., 24:])  # 32 // 8 bands on 3 axes turn 24 channels
    assert not torch.allclose(turned[..., :24], x[..., :24])


def test_tokens_are_ordered_by_frame_row_column() -> None:
    bands = torch.tensor([1.0])
    angles = rotary_angles(bands, torch.tensor([5, 0]), 2, 2, 4).view(2, 2, 2, 4, 3)
    time, row, column = angles.unbind(-1)
    assert torch.equal(time[:, :, 0, 0], torch.tensor([[5.0, 6.0], [0.0, 1.0]]))
    y, x = axis_positions(2, 4)
    torch.testing.assert_close(row[0, 0, :, 0], y.float())
    torch.testing.assert_close(column[1, 1, 0], x.float())


def test_axes_are_centred_and_rescaled_to_one_area() -> None:
    for rows, columns in ((16, 16), (4, 4), (2, 8), (45, 80)):
        y, x = axis_positions(rows, columns)
        assert y.sum().abs() < 1e-9 and x.sum().abs() < 1e-9
        factor = math.sqrt(rows * columns / 256)
        assert math.isclose(float(y[-1] - y[0]) + 1, rows / factor)
        assert math.isclose(float(x[-1] - x[0]) + 1, columns / factor)


@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (4, 1)])
def test_an_axis_of_one_token_is_refused(rows: int, columns: int) -> None:
    with pytest.raises(ConfigError, match=f"{rows}x{columns}"):
        axis_positions(rows, columns)


def test_the_bands_learn() -> None:
    rope = LearnableRope(16)
    cos, sin = rope.table(torch.tensor([1_000_000]), 1, 2, 2)
    (cos + sin).sum().backward()
    assert rope.bands.grad is not None and rope.bands.grad.isfinite().all()
