"""A deeper model that begins with a shallower one's weights computes the same."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magi_world.models.dit import VideoDiT
from magi_world.training.deepen import deepened, layer_places, widened
from magi_world.training.teacher_forcing import teacher_forced_inputs
from magi_world.world import World
from tests.tiny_world import make_tiny_world


@given(st.integers(1, 12), st.integers(0, 12))
def test_places_are_spread_and_apart(old: int, more: int) -> None:
    places = layer_places(old, old + more)
    assert len(set(places)) == old and places == sorted(places)
    assert places[0] == 0 and places[-1] < old + more
    if old > 1:
        assert places[-1] == old + more - 1


@pytest.mark.parametrize(("old", "new"), [(3, 2), (0, 4)])
def test_a_shallower_model_is_refused(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="cannot be spread"):
        layer_places(old, new)


def test_the_deep_model_begins_as_the_shallow_one(tiny_world: World) -> None:
    world = tiny_world
    old = len(world.dit.layers)
    deep = VideoDiT(replace(world.config.dit, num_layers=old + 2)).eval()
    with torch.no_grad():
        for parameter in deep.parameters():
            parameter.normal_(std=0.1)
    deep.load_state_dict(deepened(deep, world.dit.state_dict(), old))

    tokens = torch.randn(3, world.config.dit.caption_channels)
    x = torch.randn(4, *world.config.latent_shape)
    t = torch.full((4,), 0.3)

    def velocity(dit: VideoDiT) -> torch.Tensor:
        inputs = teacher_forced_inputs(
            world, (2, 2), clean=(x, t), noisy=(x, t), captions=(dit.caption_kv(tokens), [3]),
            choice_G=torch.zeros(4, dtype=torch.int64), dropped_G=torch.zeros(4, dtype=torch.bool),
        )  # fmt: skip
        result: torch.Tensor = dit(inputs).velocity
        return result

    with torch.no_grad():
        assert torch.allclose(velocity(deep), velocity(world.dit), atol=1e-5)
    velocity(deep).square().mean().backward()
    new = deep.layers[1].mlp_post_norm.weight
    assert new.grad is not None and new.grad.abs().max() > 0  # it learns from the first step on


@pytest.mark.parametrize("around", [0, 1])
def test_a_model_that_reads_the_previous_chunk_begins_as_one_that_does_not(around: int) -> None:
    narrow = make_tiny_world(previous_chunk=False)
    wide = make_tiny_world(seed=1, previous_around=around)
    wide.dit.load_state_dict(widened(wide.dit, narrow.dit.state_dict()))
    with torch.no_grad():
        wide.dit.keep.bias.fill_(-60.0)  # nothing of the previous chunk is kept
        wide.dit.keep.weight.zero_()
    x = torch.randn(4, *wide.config.latent_shape)
    noisy = torch.randn(4, *wide.config.latent_shape)
    t = torch.full((4,), 0.3)
    tokens = torch.randn(3, wide.config.dit.caption_channels)
    velocities = []
    for world in (narrow, wide):
        inputs = teacher_forced_inputs(
            world, (2, 2), clean=(x, t), noisy=(noisy, t),
            captions=(world.dit.caption_kv(tokens), [3]),
            choice_G=torch.zeros(4, dtype=torch.int64), dropped_G=torch.zeros(4, dtype=torch.bool),
        )  # fmt: skip
        with torch.no_grad():
            velocities.append(world.dit(inputs).velocity)
    assert torch.allclose(velocities[0], velocities[1], atol=1e-5)


def test_a_model_that_reads_more_of_the_previous_chunk_begins_as_it_was() -> None:
    """What decides how much of that chunk stays goes on too."""
    narrow, wide = make_tiny_world(), make_tiny_world(seed=1, previous_around=1)
    state = widened(wide.dit, narrow.dit.state_dict())
    assert not state.pop("around.weight").any()
    assert state.keys() == narrow.dit.state_dict().keys()
    assert all(torch.equal(state[name], own) for name, own in narrow.dit.state_dict().items())
