# mypy: disable-error-code="arg-type,assignment,func-returns-value,unused-ignore"
"""Steps and observations of a rollout: draws, rows, captions, dtypes, states."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_world.errors import (
    CheckpointError,
    ConfigError,
)
from magi_world.models.text import TextEncoder
from magi_world.sampling.chunk import Chunk
from magi_world.world import World, load
from tests.sampling.rollouts import LEFT, SHAPE, generators, noise_of, ready, unchanged
from tests.sampling.variants import variant
from tests.tiny_world import PROMPTS, make_tiny_world

# -------------------------------------------------------------------- step


def test_the_order_of_draws(tiny_world: World) -> None:
    rollout = tiny_world.rollout(2, seeds=[11, 12], temperature=0.5)
    noises: list[Tensor] = []
    denoise = rollout.sampler.denoise

    def spy(noise: Tensor, *rest: Any) -> Tensor:
        noises.append(noise.clone())
        return denoise(noise, *rest)

    rollout.sampler.denoise = spy  # type: ignore[method-assign]
    rollout.reset()
    mine = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
    for generator in mine:
        torch.randint(1, (), generator=generator)  # which opening
    for _ in range(4):
        chunk = rollout.step([LEFT, PROMPTS[2]])
        expected = torch.stack([noise_of(tiny_world, generator) for generator in mine]) * 0.5
        assert torch.equal(noises.pop(), expected)
        draws = torch.stack([torch.rand((), generator=generator) for generator in mine])
        assert torch.equal(chunk.terminated, draws < chunk.termination_probability)
    assert torch.equal(generators(rollout), torch.stack([g.get_state() for g in mine]))


def test_a_world_without_heads_draws_all_the_same(tiny_world: World) -> None:
    card = {**tiny_world.card, "config": {**tiny_world.card["config"], "outcome": None}}
    world = World(card, bank=tiny_world.bank)
    world.dit.load_state_dict(tiny_world.dit.state_dict())
    assert isinstance(world.text, TextEncoder) and isinstance(tiny_world.text, TextEncoder)
    world.text.load_state_dict(tiny_world.text.state_dict())
    with_heads, without = ready(tiny_world), ready(world)
    one, other = with_heads.step([LEFT] * 2), without.step([LEFT] * 2)
    assert torch.equal(one.latents, other.latents)
    assert torch.equal(generators(with_heads), generators(without))
    assert (other.reward == 0).all() and (other.termination_probability == 0).all()
    assert not other.terminated.any() and other.signals == {}


def test_rows_of_a_step(tiny_world: World) -> None:
    rollout = ready(tiny_world, 3)
    chunk = rollout.step(PROMPTS)
    assert chunk.latents.shape == (3, *SHAPE) and chunk.latents.dtype == torch.float32
    assert chunk.reward.shape == (3,) and chunk.reward.dtype == torch.float32
    assert (chunk.reward >= 0).all() and (chunk.reward <= 4).all()
    probability = chunk.termination_probability
    assert probability.shape == (3,) and (probability >= 0).all() and (probability <= 1).all()
    assert chunk.terminated.shape == (3,) and chunk.terminated.dtype == torch.bool
    assert chunk.frames.shape == (3, 4, 64, 64, 3) and chunk.frames.dtype == torch.uint8
    assert torch.equal(chunk.frames, tiny_world.decode(chunk.latents))
    assert chunk.prompts == tuple(PROMPTS)
    assert rollout.chunk_index.tolist() == [4, 4, 4]


def test_reward_is_clipped_to_the_range_of_the_card(tiny_world: World) -> None:
    world = variant(tiny_world)

    def rewards(low: float, high: float) -> Tensor:
        world.card["reward_range"] = [low, high]
        rows = [ready(world, 4, chunks).step([LEFT] * 4).reward for chunks in range(4)]
        return torch.cat(rows)

    free = rewards(-1e6, 1e6)
    low, high = free.quantile(torch.tensor([0.25, 0.75])).tolist()
    assert low < high
    torch.testing.assert_close(rewards(low, high), free.clamp(low, high))


def test_frames_are_decoded_once_and_only_when_asked_for(
    tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[int] = []
    decode = tiny_world.vae.decode
    monkeypatch.setattr(
        tiny_world.vae, "decode", lambda *args, **kw: decoded.append(1) or decode(*args, **kw)
    )
    rollout = ready(tiny_world)
    chunk = rollout.step([LEFT] * 2)
    assert decoded == []
    assert chunk.frames is chunk.frames
    assert decoded == [1]


def test_chunks_can_train_an_agent(tiny_world: World) -> None:
    rollout = ready(tiny_world)
    policy = torch.nn.Linear(64, 3)
    for chunk in (rollout.reset(), rollout.step([LEFT] * 2)):
        loss = policy(chunk.latents.flatten(2)).sum() * chunk.reward.sum()
        loss = loss + (policy(chunk.frames[:, -1, :, 0, 0].float()) * chunk.reward[:, None]).sum()
        loss.backward()
        chunk.reward.add_(1)  # a user's tensors are the user's
    assert policy.weight.grad is not None


def test_what_a_reset_returns_belongs_to_the_caller(tiny_world: World) -> None:
    rollout = ready(tiny_world)
    first = rollout.reset()
    kept = first.latents.clone(), first.frames.clone()
    first.latents.numpy().fill(9.0)
    first.frames.numpy().fill(9)
    again = rollout.reset(slots=[0])
    assert torch.equal(again.latents[0], kept[0][0]) and torch.equal(again.frames[0], kept[1][0])


def test_the_number_of_steps_is_the_worlds_or_given(tiny_world: World) -> None:
    calls: list[int] = []
    handle = tiny_world.dit.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        for steps, expected in ((None, 2), (1, 1), (5, 5)):
            rollout = ready(tiny_world, 1, 0, steps=steps)
            assert rollout.steps == expected
            calls.clear()
            rollout.step([LEFT])
            assert len(calls) == expected + 1  # and the clean pass
    finally:
        handle.remove()


def test_prompts_are_encoded_once(tiny_world: World) -> None:
    calls: list[int] = []
    world = variant(tiny_world)
    assert isinstance(world.text, TextEncoder)
    world.text.register_forward_pre_hook(lambda *_: calls.append(1))
    rollout = ready(world, 3, 0)
    calls.clear()
    for _ in range(3):
        rollout.step(["new words", "new words", "other words"])
    assert len(calls) == 2


@settings(max_examples=10)
@given(st.text(min_size=1, max_size=40).filter(str.isprintable))
def test_any_printable_text_is_a_prompt(tiny_world: World, prompt: str) -> None:
    rollout = ready(tiny_world, 1, 1)
    assert rollout.step([prompt]).latents.isfinite().all()


# -------------------------------------------------------------------- observe


def test_observing_a_step_is_stepping(tiny_world: World) -> None:
    rollout = ready(tiny_world)
    twin = rollout.fork([0, 1])
    stepped = rollout.step([LEFT, PROMPTS[2]])
    before = generators(twin)
    observed = twin.observe(stepped.latents, [LEFT, PROMPTS[2]])
    assert torch.equal(generators(twin), before)  # nothing is drawn
    for name in ("latents", "reward", "termination_probability"):
        assert torch.equal(getattr(observed, name), getattr(stepped, name))
    assert not observed.terminated.any()
    assert twin.chunk_index.tolist() == rollout.chunk_index.tolist()
    for mine, theirs in zip(twin.generators, rollout.generators, strict=True):
        mine.set_state(theirs.get_state())
    assert unchanged(rollout, twin)


def test_observing_for_some_slots(tiny_world: World) -> None:
    rollout, twin = ready(tiny_world, 3), ready(tiny_world, 3)
    latents = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    chunk = rollout.observe(latents, [LEFT, None], slots=[2, 0])
    assert torch.equal(chunk.latents, latents) and chunk.prompts == (LEFT, None)
    assert rollout.chunk_index.tolist() == [4, 3, 4]
    one, other = rollout.step([LEFT] * 3).latents, twin.step([LEFT] * 3).latents
    assert torch.equal(one[1], other[1])
    assert not torch.equal(one[0], other[0]) and not torch.equal(one[2], other[2])


# -------------------------------------------------------------------- guidance, captions, dtypes


def test_guidance_moves_away_from_the_null_caption(tiny_world: World) -> None:
    one_step = {"num_steps": 1, "null_prompt_tokens": 4}
    plain = ready(variant(tiny_world, **one_step), 2)
    guided = variant(tiny_world, guidance_scale=2.5, **one_step).rollout(2, seeds=[0, 1])
    guided.reset()
    guided.load_state_dict(plain.state_dict())
    noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = plain.sampler.denoise(noise, [LEFT] * 2, plain._places([0, 1]))
        free = plain.sampler.denoise(noise, [None] * 2, plain._places([0, 1]))
        mine = guided.sampler.denoise(noise, [LEFT] * 2, guided._places([0, 1]))
    assert not torch.allclose(told, free)
    # with one step of length 1 the guidance on velocities is a guidance on results
    torch.testing.assert_close(mine, free + 2.5 * (told - free), rtol=1e-4, atol=1e-5)
    assert guided.step([LEFT] * 2).latents.isfinite().all()


def test_clean_passes_may_take_the_null_caption(tiny_world: World) -> None:
    world = variant(tiny_world, clean_null_caption=True)
    rollout, plain = ready(world), ready(tiny_world)
    plain.load_state_dict(rollout.state_dict())
    chunk = rollout.step([LEFT] * 2)
    assert chunk.prompts == (LEFT, LEFT)
    observed = plain.observe(chunk.latents, [None] * 2)
    assert torch.equal(observed.termination_probability, chunk.termination_probability)
    assert torch.equal(plain.cache.keys_LRKD, rollout.cache.keys_LRKD)


def test_bfloat16_runs(tiny_world_path: Any, tiny_world: World) -> None:
    world = load(tiny_world_path, dtype="bfloat16")
    rollout, wide = ready(world), ready(tiny_world)
    assert rollout.cache.keys_LRKD.dtype == torch.bfloat16
    for _ in range(3):
        state = rollout.state_dict()
        chunk = rollout.step([LEFT] * 2)
        rollout.load_state_dict(state)
        again = rollout.step([LEFT] * 2)
        assert torch.equal(chunk.latents, again.latents)
        assert chunk.latents.dtype == chunk.reward.dtype == torch.float32
        assert chunk.frames.dtype == torch.uint8
    for r in (rollout, wide):
        r.reset(seeds=[1, 2])
    one, other = rollout.step([LEFT] * 2).latents, wide.step([LEFT] * 2).latents
    assert not torch.equal(one, other)
    assert (one - other).abs().max() < 0.05 * other.abs().max()


# -------------------------------------------------------------------- states and forks


def test_a_rollout_does_not_follow_its_world(tiny_world_path: Any) -> None:
    world = load(tiny_world_path)
    rollout = ready(world, 1, 0)
    world.to(dtype="bfloat16")
    moved = pytest.raises(ConfigError, match=r"moved .* torch.bfloat16 .* make a new one")
    with moved:
        rollout.step([LEFT])
    with moved:
        rollout.reset()
    with moved:
        rollout.fork([0])
    world.to(dtype="float32")  # its weights have been rounded
    with pytest.raises(ConfigError, match="moved since"):
        rollout.step([LEFT])
    other = ready(world, 1, 0)
    world.to("cpu", "float32")  # where it is
    other.step([LEFT])


def test_states_of_other_rollouts_are_refused(tiny_world: World) -> None:
    rollout, twin = ready(tiny_world), ready(tiny_world)
    state = rollout.state_dict()
    cases: list[tuple[Any, str]] = [
        (None, "NoneType is no state"),
        (state["cache"]["keys"], "Tensor is no state"),
        ({**state, "world": "pong"}, "a state of 'pong' in a rollout of"),
        (ready(tiny_world, 3).state_dict(), "a state of 3 slots in a rollout of 2"),
        (ready(variant(tiny_world, kv_range=2)).state_dict(), "cache keys .* do not fit"),
        ({"world": tiny_world.name}, "time"),
        ({}, "world"),
    ]
    for wrong, words in cases:
        with pytest.raises(CheckpointError, match=words):
            rollout.load_state_dict(wrong)
    assert unchanged(rollout, twin)


def test_a_state_of_another_picture_shape_is_refused() -> None:
    world = make_tiny_world(previous_chunk=False)  # no part of its cache has a picture's shape
    flat, tall = (world.resized(*size).rollout(1, seeds=[0]) for size in ((32, 128), (128, 32)))
    for rollout in (flat, tall):
        rollout.reset(prompt=LEFT)
    state = flat.state_dict()
    with pytest.raises(CheckpointError, match=r"chunks \[16, 1, 4, 16\] in .* \[16, 1, 16, 4\]"):
        tall.load_state_dict(state)
    for wrong in (None, torch.zeros(4)):
        with pytest.raises(CheckpointError, match="a damaged state: latent_shape"):
            flat.load_state_dict({**state, "latent_shape": wrong})
    del state["latent_shape"]  # of old
    flat.load_state_dict(state)


def test_a_fork_keeps_the_settings(tiny_world: World) -> None:
    rollout = ready(tiny_world, 2, 5, steps=3, temperature=0.7, starts="any")
    rollout.reset(slots=[1])
    fork = rollout.fork([1, 0, 1])
    assert (fork.steps, fork.temperature, fork.starts) == (3, 0.7, "any")
    assert fork.batch_size == 3 and fork.chunk_index.tolist() == [0, 5, 0]
    with torch.inference_mode():  # callers may be in any mode
        assert rollout.fork([0]).step([LEFT]).latents.isfinite().all()


@pytest.mark.parametrize(
    ("slots", "seeds", "words"),
    [
        ([], None, r"slots \[\]"),
        ([2], None, r"slots \[2\]: one or more slots of 0…1"),
        ([-1], None, r"slots \[-1\]"),
        ([0.7], None, r"slots \[0.7\]"),
        ([True], None, r"slots \[True\]"),
        (["0"], None, r"slots \['0'\]"),
        ("0", None, "slots '0'"),
        (1, None, "slots 1"),
        (None, None, r"slots \[\]"),
        ([0, 1], [1], "1 seeds for 2 slots"),
    ],
)
def test_wrong_forks(tiny_world: World, slots: Any, seeds: Any, words: str) -> None:
    rollout, twin = ready(tiny_world), ready(tiny_world)
    with pytest.raises(ConfigError, match=words):
        rollout.fork(slots, seeds)
    assert unchanged(rollout, twin)


def test_a_rollout_never_ends_by_itself() -> None:
    world = make_tiny_world()
    assert world.outcome is not None
    with torch.no_grad():
        world.outcome.mlp_out.bias[1] = 100.0
    rollout = world.rollout(2, seeds=[0, 1])
    assert not rollout.reset().terminated.any()
    for index in range(1, 20):
        chunk: Chunk = rollout.step([LEFT] * 2)
        assert chunk.terminated.all()
        assert rollout.chunk_index.tolist() == [index] * 2
