# mypy: disable-error-code="arg-type,assignment,func-returns-value,unused-ignore"
"""What a reset begins with: clips, pictures, prompts, chosen slots."""

from typing import Any

import numpy as np
import pytest
import torch

from magi_world.sampling.rollout import Rollout
from magi_world.world import World
from tests.sampling.rollouts import LEFT, generators, pictures, ready
from tests.tiny_world import PROMPTS

# -------------------------------------------------------------------- reset


def test_the_first_chunk_is_the_decoded_end_of_the_clip(tiny_world: World) -> None:
    bank = tiny_world.bank
    assert bank is not None
    rollout = tiny_world.rollout(3, seeds=[0, 1, 2])
    chunk = rollout.reset(clip=[0, 1, 2])
    for row in range(3):
        assert torch.equal(chunk.latents[row], bank.latents[row][-1])
        assert chunk.prompts[row] == bank.prompts[row][-1]
    assert torch.equal(chunk.frames[2], tiny_world.decode(bank.latents[2][-1:])[0])
    assert (chunk.reward == 0).all() and not chunk.terminated.any()
    assert rollout.chunk_index.tolist() == [0, 0, 0]
    assert rollout.cache.filled == [1, 3, 3]  # a KV range of 4 keeps the last 3 chunks
    assert rollout.time == [1, 3, 4]


@pytest.mark.parametrize("index", [np.int64(2), torch.tensor(2), [2, 2], np.array([2, 2])])
def test_a_clip_may_be_any_kind_of_integer(tiny_world: World, index: Any) -> None:
    rollout = tiny_world.rollout(2, seeds=[0, 1])
    assert torch.equal(rollout.reset(clip=index).latents, rollout.reset(clip=2).latents)


def test_only_the_named_slots_begin_anew(tiny_world: World) -> None:
    rollout, twin = ready(tiny_world, 4), ready(tiny_world, 4)
    chunk = rollout.reset(slots=[3, 1], seeds=[70, 71], clip=[1, 2])
    bank = tiny_world.bank
    assert bank is not None
    assert torch.equal(chunk.latents, torch.stack([bank.latents[1][-1], bank.latents[2][-1]]))
    assert rollout.chunk_index.tolist() == [3, 0, 3, 0]
    states, others = generators(rollout), generators(twin)
    assert torch.equal(states[[0, 2]], others[[0, 2]])
    for slot, seed in ((3, 70), (1, 71)):
        assert torch.equal(states[slot], torch.Generator().manual_seed(seed).get_state())
    size = 4 * tiny_world.config.tokens_per_chunk
    for slot in (0, 2):
        ring = slice(slot * size, (slot + 1) * size)
        assert torch.equal(rollout.cache.keys_LRKD[:, ring], twin.cache.keys_LRKD[:, ring])
    one, other = rollout.step([LEFT] * 4).latents, twin.step([LEFT] * 4).latents
    assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert not torch.equal(one[1], other[1]) and not torch.equal(one[3], other[3])


def test_generators_go_on_without_seeds(tiny_world: World) -> None:
    rollout = ready(tiny_world, 1)
    first = rollout.reset(), rollout.step([LEFT])
    again = rollout.reset(), rollout.step([LEFT])
    assert torch.equal(first[0].latents, again[0].latents)  # there is one opening
    assert not torch.equal(first[1].latents, again[1].latents)
    reseeded = rollout.reset(seeds=[5]), rollout.step([LEFT])
    repeated = rollout.reset(seeds=[5]), rollout.step([LEFT])
    assert torch.equal(reseeded[1].latents, repeated[1].latents)


def test_unseeded_rollouts_differ(tiny_world: World) -> None:
    rollouts = [tiny_world.rollout(1) for _ in range(2)]
    for rollout in rollouts:
        rollout.reset()
    one, other = (rollout.step([LEFT]).latents for rollout in rollouts)
    assert not torch.equal(one, other)


def test_starts_decide_what_is_drawn(tiny_world: World) -> None:
    bank = tiny_world.bank
    assert bank is not None
    ends = torch.stack([clip[-1] for clip in bank.latents])

    def drawn(rollout: Rollout) -> list[int]:
        latents = rollout.reset().latents
        return [int((ends == row).all((1, 2, 3, 4)).nonzero()) for row in latents]

    openings = tiny_world.rollout(12, seeds=range(12))
    assert drawn(openings) + drawn(openings) == [0] * 24
    anything = tiny_world.rollout(12, seeds=range(12), starts="any")
    first = drawn(anything)
    assert set(first) == {0, 1, 2}
    generator = torch.Generator().manual_seed(3)
    assert first[3] == int(torch.randint(3, (), generator=generator))
    assert drawn(anything) != first


def test_an_image_is_repeated_to_fill_a_chunk(tiny_world: World) -> None:
    image = pictures(1)[0]
    rollout, other = ready(tiny_world), ready(tiny_world)
    chunk = rollout.reset(image=image)
    expected = tiny_world.encode(np.stack([image] * 4)[None])
    assert torch.equal(chunk.latents, expected.expand(2, -1, -1, -1, -1))
    assert chunk.prompts == (None, None)
    assert rollout.cache.filled == [1, 1] and rollout.chunk_index.tolist() == [0, 0]
    other.reset(video=np.stack([image] * 4))
    assert torch.equal(rollout.step([LEFT] * 2).latents, other.step([LEFT] * 2).latents)
    captioned = ready(tiny_world)
    captioned.reset(image=image, prompts=[PROMPTS[2]])
    assert not torch.equal(rollout.step([LEFT] * 2).latents, captioned.step([LEFT] * 2).latents)


def test_pictures_may_be_tensors_lists_or_read_only(tiny_world: World) -> None:
    image = pictures(1)[0]
    rollout = ready(tiny_world)
    expected = rollout.reset(image=image).latents
    frozen = image.copy()
    frozen.flags.writeable = False
    for form in (torch.from_numpy(image), frozen, np.asfortranarray(image)):
        assert torch.equal(rollout.reset(image=form).latents, expected)
    video = np.broadcast_to(image, (4, 64, 64, 3))
    assert torch.equal(rollout.reset(video=video).latents, expected)


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_a_video_is_cropped_at_the_front(tiny_world: World, extra: int) -> None:
    video = pictures(20 + extra)
    rollout, other = ready(tiny_world), ready(tiny_world)
    prompts = [PROMPTS[i % 3] for i in range(5)]
    chunk = rollout.reset(video=video, prompts=prompts)
    assert torch.equal(chunk.latents[:1], tiny_world.encode(video[None, -4:]))
    assert chunk.prompts == (prompts[-1],) * 2
    assert rollout.cache.filled == [3, 3]  # longer than the KV range: its last chunks stay
    other.reset(video=video[extra:], prompts=prompts)
    assert torch.equal(rollout.step([LEFT] * 2).latents, other.step([LEFT] * 2).latents)


@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 9])
def test_a_history_is_its_chunks_observed(tiny_world: World, chunks: int) -> None:
    """Whatever its length beside the KV range, partly filled caches included."""
    video = pictures(4 * chunks)
    prompts: list[str | None] = [[*PROMPTS, None][i % 4] for i in range(chunks)]
    rollout, other = ready(tiny_world, 1), ready(tiny_world, 1)
    rollout.reset(video=video, prompts=prompts)
    other.cache.clear(0)
    other.time = [0]
    for index, prompt in enumerate(prompts):
        other.observe(tiny_world.encode(video[None, 4 * index : 4 * index + 4]), [prompt])
    for _ in range(5):
        one, two = rollout.step([LEFT]), other.step([LEFT])
        torch.testing.assert_close(one.latents, two.latents, rtol=0, atol=1e-5)


def test_a_prompt_starts_from_nothing(tiny_world: World) -> None:
    rollout, other = ready(tiny_world), tiny_world.rollout(2, seeds=[0, 1])
    chunk = rollout.reset(seeds=[3, 4], prompt=LEFT)
    again = other.reset(seeds=[3, 4], prompt=LEFT)
    assert torch.equal(chunk.latents, again.latents)  # what was before leaves no trace
    assert not torch.equal(chunk.latents[0], chunk.latents[1])
    assert rollout.cache.filled == [1, 1] and rollout.chunk_index.tolist() == [0, 0]
    assert (chunk.reward == 0).all() and not chunk.terminated.any()
    assert chunk.prompts == (LEFT, LEFT)
    one, two = rollout.step([LEFT] * 2), other.step([LEFT] * 2)
    assert torch.equal(one.latents, two.latents)
