# mypy: disable-error-code="arg-type,assignment,func-returns-value,unused-ignore"
"""What the cache of a rollout holds, and that it does not grow."""

from typing import Any

import pytest
import torch
from torch import Tensor

from magi_world.evaluation.bench import resident_bytes
from magi_world.kernels.attention import sdpa
from magi_world.world import World
from tests.sampling.rollouts import LEFT, SHAPE, pictures, ready
from tests.tiny_world import PROMPTS

# -------------------------------------------------------------------- the cache


def test_what_lies_outside_the_history_is_never_seen(tiny_world: World) -> None:
    """Scratch and unused places hold garbage in one rollout and not in the other."""
    for start in ({"clip": 0}, {"clip": 2}, {"prompt": LEFT}, {"video": pictures(8)}):
        rollout, twin = ready(tiny_world), ready(tiny_world)
        for r in (rollout, twin):
            r.reset(**start)  # type: ignore[arg-type]
        for _ in range(5):
            cache, n = rollout.cache, tiny_world.config.tokens_per_chunk
            for slot in range(2):
                seen = set(cache._visible(slot, 0, None)) - {cache.scratch[slot]}
                for place in set(range(cache.places)) - seen:
                    first = (slot * cache.places + place) * n
                    cache.keys_LRKD[:, first : first + n] = 1e3
                    cache.values_LRKD[:, first : first + n] = -1e3
            one, other = rollout.step([LEFT] * 2), twin.step([LEFT] * 2)
            assert torch.equal(one.latents, other.latents)
            assert torch.equal(one.termination_probability, other.termination_probability)


def test_a_slot_recovers_from_nan(tiny_world: World) -> None:
    starts: list[dict[str, Any]] = [
        {"clip": 0}, {"prompt": LEFT}, {"image": pictures(1)[0]}, {"video": pictures(8)},
    ]  # fmt: skip
    for start in starts:
        rollout = ready(tiny_world)
        rollout.observe(torch.full((1, *SHAPE), torch.nan), [LEFT], slots=[1])
        assert rollout.step([LEFT] * 2).latents[0].isfinite().all()  # the other never notices
        rollout.reset(slots=[1], **start)
        for _ in range(4):
            assert rollout.step([LEFT] * 2).latents.isfinite().all()


def test_the_cache_ends_with_the_clean_pass(tiny_world: World) -> None:
    """Keys and values of a step are those of its clean chunk, whatever was denoised before."""
    rollout = ready(tiny_world, 1)
    scratch, n = rollout.cache.scratch[0], tiny_world.config.tokens_per_chunk
    chunk = rollout.step([LEFT])
    place = slice(scratch * n, (scratch + 1) * n)
    kept = rollout.cache.keys_LRKD[:, place].clone()
    twin = ready(tiny_world, 1)
    twin.observe(chunk.latents, [LEFT])
    assert torch.equal(twin.cache.keys_LRKD[:, place], kept)
    noisy = ready(tiny_world, 1)
    noisy.sampler.denoise(torch.zeros(1, *SHAPE), [LEFT], noisy._places([0]))
    assert not torch.equal(noisy.cache.keys_LRKD[:, place], kept)


def test_memory_and_shapes_of_a_step_stay_the_same(
    tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = ready(tiny_world, 2, 4)  # the cache is full
    shapes: list[tuple[Any, ...]] = []
    group = sdpa._group_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float) -> Any:
        shapes.append((q.shape, k.shape, None if mask is None else mask.shape))
        return group(q, k, v, mask, scale)

    monkeypatch.setattr(sdpa, "_group_attention", spy)
    pointers = rollout.cache.keys_LRKD.data_ptr(), rollout.cache.values_LRKD.data_ptr()

    def step() -> list[tuple[Any, ...]]:
        shapes.clear()
        rollout.step([LEFT, PROMPTS[2]])
        return list(shapes)

    first = step()
    early = 0
    for index in range(200):
        assert step() == first
        if index == 60:
            early = resident_bytes()
    assert resident_bytes() <= 1.02 * early
    assert (rollout.cache.keys_LRKD.data_ptr(), rollout.cache.values_LRKD.data_ptr()) == pointers


def test_shapes_do_not_depend_on_the_length_of_histories(
    tiny_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[Any, ...]] = []
    group = sdpa._group_attention
    monkeypatch.setattr(
        sdpa,
        "_group_attention",
        lambda q, k, *rest: shapes.append((q.shape, k.shape)) or group(q, k, *rest),
    )
    seen = []
    for clip in ([0, 0], [0, 2], [1, 2]):
        rollout = ready(tiny_world, 2, 0)
        rollout.reset(clip=clip)
        shapes.clear()
        rollout.step([LEFT, LEFT])
        seen.append(list(shapes))
    assert seen[0] == seen[1] == seen[2]
