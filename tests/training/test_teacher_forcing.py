"""Teacher forcing: one forward over many chunks is what a rollout does chunk by chunk."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from magi_world.kernels.attention.reference import dense_mask
from magi_world.models.dit import DiTOutput
from magi_world.training.teacher_forcing import (
    add_noise,
    caption_slices,
    concatenate_captions,
    teacher_forced_inputs,
    teacher_forcing_slices,
)
from magi_world.world import World
from tests.sampling.variants import variant
from tests.tiny_world import PROMPTS, make_tiny_world

S, L = 2, 7  # sequences, and more chunks in each than the KV range of 4
SHAPE = (16, 1, 8, 8)


@given(
    st.integers(1, 3), st.integers(1, 6), st.integers(1, 7), st.integers(1, 2), st.integers(1, 3)
)
def test_who_sees_whom(
    sequences: int, length: int, kv_range: int, tokens: int, copies: int
) -> None:
    slices = teacher_forcing_slices(sequences, length, kv_range, tokens, copies)
    clean = sequences * length
    chunks = (1 + copies) * clean
    rows = chunks * tokens
    mask = dense_mask(slices, rows, rows).view(chunks, tokens, chunks, tokens)
    for query, key in itertools.product(range(chunks), repeat=2):
        (s, i), (other, j) = divmod(query % clean, length), divmod(key % clean, length)
        if key >= clean:  # a noisy copy is seen by itself alone
            sees = query == key
        elif query < clean:  # clean by clean: itself and what came before, within the range
            sees = s == other and i - kv_range < j <= i
        else:
            sees = s == other and i - kv_range < j < i
        assert (mask[query, :, key] == sees).all()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.integers(1, 3))
def test_each_chunk_reads_its_caption(choice: list[int], tokens: int) -> None:
    lengths = [3, 1, 4]
    slices = caption_slices(choice, lengths, tokens)
    owner = torch.tensor([0, 1, 2]).repeat_interleave(torch.tensor(lengths))
    expected = torch.tensor(choice).repeat_interleave(tokens)[:, None] == owner
    assert torch.equal(dense_mask(slices, len(choice) * tokens, 8), expected)


def test_noise_is_a_straight_path() -> None:
    x, noise = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.0, 1.0, 0.25])
    mixed = add_noise(x, noise, t)
    assert torch.equal(mixed[0], noise[0]) and torch.equal(mixed[1], x[1])
    torch.testing.assert_close(mixed[2], 0.75 * noise[2] + 0.25 * x[2])


def draw(seed: int) -> Tensor:
    return torch.randn(S * L, *SHAPE, generator=torch.Generator().manual_seed(seed))


CHOICE = torch.tensor([(3 * s + 2 * i) % 4 for s in range(S) for i in range(L)])  # 3: no prompt
TEXTS: list[str | None] = [*PROMPTS, None]


@torch.no_grad()
def forced(world: World, clean: Tensor, noisy: Tensor, t: float = 0.0) -> DiTOutput:
    """Teacher-forced forward; velocities and hidden states of clean, then noisy copies."""
    parts = [world.caption(text) for text in TEXTS]
    captions = concatenate_captions(parts), [part[0][0].shape[0] for part in parts]
    inputs = teacher_forced_inputs(
        world,
        (S, L),
        clean=(clean, torch.full((S * L,), world.config.sampling.clean_t)),
        noisy=(noisy, torch.full((len(noisy),), t)),
        captions=captions,
        choice_G=CHOICE,
        dropped_G=CHOICE == 3,
    )
    return world.dit(inputs)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("chunk_width", "dit"),
    [(1, {}), (2, {}), (1, {"previous_chunk": False, "predicts": "velocity"})],
)
def test_a_forced_chunk_is_a_cached_chunk(chunk_width: int, dit: dict[str, Any]) -> None:
    """Velocity of every noisy copy, and outcome of every clean one, against a rollout."""
    world = variant(make_tiny_world(**dit), num_steps=1, chunk_width=chunk_width)
    shape = world.config.latent_shape
    clean, noise = torch.randn(2, S * L, *shape, generator=torch.Generator().manual_seed(0))
    output = forced(world, clean, noise)
    velocity = output.velocity[S * L :].unflatten(0, (S, L))
    judged = world.judge(clean, output.hidden[: S * L], [None] * (S * L))

    rollout = world.rollout(S, seeds=range(S))
    rollout.reset(prompt=PROMPTS[0])
    for slot in range(S):
        rollout.cache.clear(slot)
    rollout.time = [0] * S
    real, start = (x.unflatten(0, (S, L)) for x in (clean, noise))
    choice = CHOICE.view(S, L)
    for i in range(L):
        prompts = [TEXTS[int(c)] for c in choice[:, i]]
        with torch.no_grad():  # one step from 0 to 1 adds the velocity once
            ahead = rollout.sampler.denoise(start[:, i], prompts, rollout._places(range(S)))
        torch.testing.assert_close(ahead - start[:, i], velocity[:, i], rtol=1e-4, atol=1e-5)
        observed = rollout.observe(real[:, i], prompts)
        for name in ("reward", "termination_probability"):
            mine = getattr(judged, name).view(S, L)[:, i]
            torch.testing.assert_close(getattr(observed, name), mine, rtol=1e-4, atol=1e-5)


def test_no_chunk_sees_its_own_future(tiny_world: World) -> None:
    clean, noisy = draw(0), draw(1)
    base = forced(tiny_world, clean, noisy, 0.3).velocity[S * L :]
    for i in (0, 3, 6):
        other_clean, other_noisy = clean.clone(), noisy.clone()
        other_clean[i:L] += 1.0  # its own clean copy and all later ones of the first sequence
        other_clean[L:] += 1.0  # another sequence
        keep = torch.arange(S * L) == i
        other_noisy[~keep] += 1.0
        changed = forced(tiny_world, other_clean, other_noisy, 0.3).velocity[S * L :]
        torch.testing.assert_close(changed[i], base[i])
        if i > 0:
            other_clean[i - 1] += 1.0
            changed = forced(tiny_world, other_clean, other_noisy, 0.3).velocity[S * L :]
            assert (changed[i] - base[i]).abs().max() > 1e-4  # its past it sees


def test_several_noisy_copies_do_not_see_each_other(tiny_world: World) -> None:
    clean, one, other = draw(0), draw(1), draw(2)
    both = forced(tiny_world, clean, torch.cat([one, other]), 0.3).velocity
    torch.testing.assert_close(both[: 2 * S * L], forced(tiny_world, clean, one, 0.3).velocity)
    alone = forced(tiny_world, clean, other, 0.3).velocity
    torch.testing.assert_close(both[2 * S * L :], alone[S * L :])


def test_time_starts_with_each_sequence(tiny_world: World) -> None:
    one = draw(0)
    one[L:] = one[:L]
    noise = draw(1)
    noise[L:] = noise[:L]
    choice = CHOICE.clone()
    CHOICE[L:] = CHOICE[:L]
    try:
        velocity = forced(tiny_world, one, noise).velocity
    finally:
        CHOICE.copy_(choice)
    torch.testing.assert_close(velocity[:L], velocity[L : 2 * L])
    torch.testing.assert_close(velocity[2 * L : 3 * L], velocity[3 * L :])


def test_masks_are_made_once() -> None:
    arguments: Any = (2, 5, 3, 4)
    assert teacher_forcing_slices(*arguments) is teacher_forcing_slices(*arguments)
