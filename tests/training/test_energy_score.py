"""The energy score: what it is made of, and that it is smallest for the true distribution."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magi_world.training.energy_score import energy_score, parts

SHAPE = (16, 1, 8, 8)  # C, P, h, w


def test_parts_are_places_squares_and_the_whole() -> None:
    x = torch.arange(2 * 16 * 64).view(2, *SHAPE)
    places, small, large, whole = parts(x)
    assert [tuple(p.shape) for p in (places, small, large, whole)] == [
        (2, 64, 16), (2, 16, 64), (2, 9, 256), (2, 1, 1024),
    ]  # fmt: skip
    assert torch.equal(places[1, 8 * 3 + 5], x[1, :, 0, 3, 5])
    for size, stride, found in ((2, 2, small), (4, 2, large)):
        starts = range(0, 8 - size + 1, stride)
        for index, (row, column) in enumerate(itertools.product(starts, starts)):
            square = x[1, :, :, row : row + size, column : column + size]
            assert torch.equal(found[1, index].sort().values, square.flatten().sort().values)


@pytest.mark.parametrize(("grid", "count"), [((1, 1), 2), ((2, 3), 3), ((4, 4), 4)])
def test_a_small_grid_has_fewer_sizes(grid: tuple[int, int], count: int) -> None:
    assert len(list(parts(torch.zeros(3, 2, 1, *grid)))) == count


def test_several_latent_frames_belong_to_one_place() -> None:
    x = torch.randn(2, 3, 4, 2, 2)  # C 3, P 4
    first = next(parts(x))
    assert torch.equal(first[0, 1], x[0, :, :, 0, 1].flatten())


def test_a_worked_example() -> None:
    # one number a chunk: |1-3| and |2-3|, one pair |1-2|; places and whole are the same part
    samples = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1, 1)
    real = torch.full((1, 1, 1, 1, 1), 3.0)
    assert energy_score(samples, real, softness=0.0).item() == pytest.approx(1.0, abs=1e-3)
    soft = [(d**2 + 0.25) ** 0.5 - 0.5 for d in (2.0, 1.0, 1.0)]
    expected = (soft[0] + soft[1]) / 2 - soft[2] / 2
    assert energy_score(samples, real, softness=0.5).item() == pytest.approx(expected, abs=1e-3)


@given(st.floats(0.05, 0.95), st.floats(0.0, 1.0))
def test_a_wrong_chance_loses_by_its_distance(p: float, softness: float) -> None:
    """A thing that is there with chance p: sampling it with chance p scores best."""
    count = 20_000
    generator = torch.Generator().manual_seed(0)

    def draws(chance: float, shape: tuple[int, ...]) -> torch.Tensor:
        return (torch.rand(shape, generator=generator) < chance).float()[
            ..., None, None, None, None
        ]

    real = draws(p, (count,))

    def score(samples: torch.Tensor) -> float:
        return energy_score(samples, real, softness=softness).mean().item()

    unit = (1 + softness**2) ** 0.5 - softness  # distance of there and not there
    right = score(draws(p, (2, count)))
    for wrong in (0.0, 1.0):
        expected = unit * (p - wrong) ** 2  # how much a Bernoulli of another chance loses
        assert score(draws(wrong, (2, count))) - right == pytest.approx(expected, abs=0.02)


def test_weights_count_the_places() -> None:
    generator = torch.Generator().manual_seed(0)
    samples, real = torch.randn(2, 3, *SHAPE, generator=generator), torch.zeros(3, *SHAPE)
    plain = energy_score(samples, real)
    assert torch.allclose(energy_score(samples, real, weight_Ghw=torch.ones(3, 8, 8)), plain)
    assert torch.allclose(
        energy_score(samples, real, weight_Ghw=2 * torch.ones(3, 8, 8)), 2 * plain
    )
    corner = torch.zeros(3, 8, 8)
    corner[:, 0, 0] = 1.0  # all parts but those with this place are out
    changed = samples.clone()
    changed[..., 4:, 4:] = 0.0
    parts_of = [energy_score(x, real, weight_Ghw=corner) for x in (samples, changed)]
    whole = [energy_score(x[..., :4, :4], real[..., :4, :4]) for x in (samples, changed)]
    assert torch.equal(whole[0], whole[1])
    assert (parts_of[0] - parts_of[1]).abs().max() < 0.02  # through the whole chunk alone


def test_drawing_beats_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    real, *samples = torch.randn(3, 20_000, 1, 1, 1, 1, generator=generator)
    drawn = energy_score(torch.stack(samples), real).mean()
    assert drawn < energy_score(torch.zeros(2, *real.shape), real).mean() - 0.05


@pytest.mark.parametrize("shape", [(1, 4, 1, 1, 1, 1), (2, 3, 1, 1, 1, 1)])
def test_too_few_samples_or_others_chunks_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two or more of the same shape"):
        energy_score(torch.zeros(shape), torch.zeros(4, 1, 1, 1, 1))


def test_equal_samples_have_a_gradient() -> None:
    samples = torch.zeros(2, 1, 1, 1, 2, 2, requires_grad=True)
    energy_score(samples, torch.zeros(1, 1, 1, 2, 2)).sum().backward()
    assert samples.grad is not None and samples.grad.isfinite().all()
