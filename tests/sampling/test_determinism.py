# mypy: disable-error-code="arg-type"
"""Which rollouts agree to the bit, and which closely."""

import io
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from magi_world.envs.vector_env import WorldVectorEnv
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.generate import generate
from magi_world.sampling.rollout import Rollout
from magi_world.world import World, load
from tests.tiny_world import PROMPTS

ODD = [*PROMPTS, "a much longer prompt than any of the others, with punctuation!", "x"]


def equal(one: Chunk, other: Chunk, row: int = 0, other_row: int = 0) -> bool:
    """Whether two rows hold the same bits."""
    return all(
        torch.equal(getattr(one, name)[row], getattr(other, name)[other_row])
        for name in ("latents", "reward", "termination_probability", "terminated", "frames")
    )


def play(rollout: Rollout, chunks: int, first: int = 0) -> list[Chunk]:
    width = rollout.batch_size
    plan = itertools.islice(itertools.cycle(PROMPTS), first, first + chunks)
    return [rollout.step([prompt] * width) for prompt in plan]


@pytest.mark.parametrize("width", [1, 3])
def test_the_same_seeds_give_the_same_bits(tiny_world: World, width: int) -> None:
    runs = []
    for _ in range(2):
        rollout = tiny_world.rollout(width, seeds=range(5, 5 + width))
        runs.append([rollout.reset(), *play(rollout, 6)])
    for one, other in zip(*runs, strict=True):
        assert all(equal(one, other, row, row) for row in range(width))
    rows = [chunk.latents for chunk in runs[0]]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(rows, 2))


def test_a_reloaded_world_gives_the_same_bits(tiny_world: World, tiny_world_path: Path) -> None:
    runs = []
    for world in (tiny_world, load(tiny_world_path)):
        rollout = world.rollout(2, seeds=[1, 2])
        rollout.reset()
        runs.append(play(rollout, 4)[-1])
    assert equal(*runs)


def test_torchs_default_dtype_changes_no_bit(tiny_world: World, tiny_world_path: Path) -> None:
    def numbers(world: World) -> list[Tensor]:
        rollout = world.rollout(2, seeds=[1, 2], starts="any")
        chunks = [rollout.reset(), *play(rollout, 2)]
        video = generate(world, PROMPTS[1], num_frames=8)
        env = WorldVectorEnv(1, world, observations="latent", output="torch")
        env.reset(seed=0)
        return [
            *(getattr(c, name) for c in chunks for name in ("latents", "reward", "terminated")),
            *(chunk.latents for chunk in video),
            *env.step([PROMPTS[1]])[:4],
        ]

    usual = numbers(tiny_world)
    torch.set_default_dtype(torch.float64)
    try:
        unusual = [numbers(tiny_world), numbers(load(tiny_world_path))]
    finally:
        torch.set_default_dtype(torch.float32)
    for one, *others in zip(usual, *unusual, strict=True):
        assert all(torch.equal(one, other) and one.dtype == other.dtype for other in others)


def test_nothing_reads_or_moves_global_random_state(tiny_world: World) -> None:
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        rollout = tiny_world.rollout(2, seeds=[1, 2], starts="any")
        rollout.reset()
        results.append(play(rollout, 2)[-1])
        assert torch.equal(torch.get_rng_state(), before)
    assert equal(*results)


@pytest.mark.parametrize("width", [2, 5])
def test_a_slot_does_not_feel_the_others(tiny_world: World, width: int) -> None:
    quiet = tiny_world.rollout(width, seeds=range(width))
    busy = tiny_world.rollout(width, seeds=[0, *range(100, 99 + width)])
    quiet.reset()
    busy.reset()
    busy.reset(slots=range(1, width), clip=2)  # other histories, other lengths
    for index in range(9):
        if index % 3 == 2:  # others begin anew, in one way or another
            busy.reset(slots=[width - 1], seeds=[index], prompt="y" if index == 5 else None)
        if index == 4:
            latents = torch.full((1, *tiny_world.config.latent_shape), 3.0)
            busy.observe(latents, [None], slots=[1])
        prompt = PROMPTS[index % 3]
        one = quiet.step([prompt] * width)
        other = busy.step([prompt, *(ODD[(index + i) % len(ODD)] for i in range(1, width))])
        assert equal(one, other)
    assert not equal(one, other, 1, 1)


def test_a_reset_row_does_not_feel_the_rows_beside_it(tiny_world: World) -> None:
    rollout = tiny_world.rollout(9, seeds=range(9))
    clips = [0, 1, 2] * 3
    together = rollout.reset(clip=clips)
    for slot, clip in enumerate(clips):
        alone = rollout.reset(slots=[slot], clip=clip)
        assert equal(together, alone, slot)


def test_another_order_of_slots_gives_another_order_of_rows(tiny_world: World) -> None:
    rollout = tiny_world.rollout(3, seeds=[1, 2, 3])
    one = rollout.reset(slots=[0, 1, 2], clip=[0, 1, 2])
    other = rollout.reset(slots=[2, 0, 1], clip=[2, 0, 1])
    for row, there in enumerate([1, 2, 0]):
        assert equal(one, other, row, there)


def test_batch_sizes_agree_closely_when_teacher_forced(tiny_world: World) -> None:
    """One chunk ahead of the same 16 latents, with the same draws, alone and among others."""
    width, slot = 4, 2
    many = tiny_world.rollout(width, seeds=range(width))
    one = tiny_world.rollout(1, seeds=[slot])
    many.reset()
    one.reset()
    for index in range(16):
        prompts = [PROMPTS[(index + i) % 3] for i in range(width)]
        seeds = [50 * index + i for i in range(width)]
        ahead = many.fork(range(width), seeds).step(prompts)
        alone = one.fork([0], [seeds[slot]]).step([prompts[slot]])
        for name in ("latents", "reward", "termination_probability"):
            torch.testing.assert_close(
                getattr(ahead, name)[slot], getattr(alone, name)[0], rtol=0, atol=1e-4
            )
        many.observe(ahead.latents, prompts)
        one.observe(ahead.latents[slot : slot + 1], prompts[slot : slot + 1])


def aged(world: World, age: int) -> tuple[Rollout, list[Tensor]]:
    """A rollout whose history of three given chunks began at an age; and those chunks."""
    rollout = world.rollout(1, seeds=[3])
    rollout.reset()
    rollout.cache.clear(0)
    rollout.time = [age]
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(1, *world.config.latent_shape, generator=generator) for _ in range(3)]
    for latents, prompt in zip(given, PROMPTS, strict=True):
        rollout.observe(latents, [prompt])
    return rollout, given


@pytest.mark.parametrize("age", [1_000_000, 40_000_000])
def test_time_never_runs_out(tiny_world: World, age: int) -> None:
    young, _ = aged(tiny_world, 10)
    old, _ = aged(tiny_world, age)
    for prompt in PROMPTS:  # each chunk sees three before it
        one, other = young.step([prompt]), old.step([prompt])
        torch.testing.assert_close(one.latents, other.latents, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            one.termination_probability, other.termination_probability, rtol=0, atol=1e-5
        )


@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_saved_state_goes_on_exactly(
    tiny_world: World, tiny_world_path: Path, through_a_file: bool
) -> None:
    rollout = tiny_world.rollout(2, seeds=[4, 5])
    rollout.reset()
    play(rollout, 3)
    rollout.reset(slots=[1])
    play(rollout, 3)
    state = rollout.state_dict()
    target = rollout
    if through_a_file:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        target = load(tiny_world_path).rollout(2)
    index = state["chunk_index"].clone()
    expected = play(rollout, 5)
    for _ in range(2):  # what was loaded is not changed by going on
        target.load_state_dict(state)
        assert torch.equal(target.chunk_index, index)
        for one, other in zip(play(target, 5), expected, strict=True):
            assert equal(one, other) and equal(one, other, 1, 1)


def test_a_fork_replays_and_with_seeds_it_does_not(tiny_world: World) -> None:
    rollout = tiny_world.rollout(2, seeds=[4, 5])
    rollout.reset()
    play(rollout, 5)
    copy, other = rollout.fork([0, 1]), rollout.fork([0, 1], seeds=[4, 5])
    three = rollout.fork([1, 1, 0], seeds=[7, 8, 7])
    expected = play(rollout, 3)
    for one, mine in zip(expected, play(copy, 3), strict=True):
        assert equal(one, mine) and equal(one, mine, 1, 1)
    assert not equal(expected[0], play(other, 1)[0])
    rows = three.step([PROMPTS[0]] * 3).latents
    assert not torch.equal(rows[0], rows[1])  # the same history, other noise
    assert not torch.equal(rows[0], rows[2])  # the same noise, another history


def test_a_planner_does_not_foresee_the_noise(tiny_world: World) -> None:
    rollout = tiny_world.rollout(1, seeds=[4])
    rollout.reset()
    play(rollout, 5)
    imagined = rollout.fork([0], seeds=[99]).step([PROMPTS[1]])
    real = rollout.step([PROMPTS[1]])
    assert (imagined.latents - real.latents).abs().max() > 0.1
    assert not torch.equal(imagined.frames, real.frames)


def test_a_fork_shares_nothing(tiny_world: World) -> None:
    rollout = tiny_world.rollout(1, seeds=[4])
    twin = tiny_world.rollout(1, seeds=[4])
    for r in (rollout, twin):
        r.reset()
        play(r, 2)
    fork = rollout.fork([0])
    play(fork, 6)
    fork.reset(seeds=[1])
    mine, theirs = play(rollout, 6), play(twin, 6)
    assert all(equal(one, other) for one, other in zip(mine, theirs, strict=True))
    assert rollout.chunk_index.tolist() == [8] and fork.chunk_index.tolist() == [0]
