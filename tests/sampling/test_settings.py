# mypy: disable-error-code="arg-type"
"""What a caller may choose for a video, and what is refused before the first step."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_world.errors import ConfigError
from magi_world.sampling.generate import (
    GeneratedChunk,
    GenerateSettings,
    generate,
    world_layout,
)
from tests.sampling.tiny_magi1 import F, close, latents, pinned, tiny_magi1, video


@settings(max_examples=25)
@given(steps=st.integers(1, 24), window=st.integers(1, 24))
def test_any_window_that_divides_the_steps(steps: int, window: int) -> None:
    world = tiny_magi1()
    wanted = GenerateSettings(num_steps=steps, window=window, kv_ranges=(3,))
    if steps % window:
        divisors = [size for size in range(1, steps + 1) if steps % size == 0]
        with pytest.raises(ConfigError) as caught:
            generate(world, "a", num_frames=F, settings=wanted)
        assert str(divisors) in str(caught.value)
    else:
        (chunk,) = generate(world, "a", num_frames=F, settings=wanted)
        assert chunk.latents.isfinite().all()


@pytest.mark.parametrize("steps", [8, 12, 16, 32, 64])
def test_the_steps_of_distilled_models(steps: int) -> None:
    world = tiny_magi1(distilled=True)
    one = latents(world, chunks=2, num_steps=steps)
    assert one.isfinite().all()
    assert not close(one, latents(world, chunks=2, num_steps=steps, near_clean_share=1.0))


def test_the_same_seed_gives_the_same_bits() -> None:
    world = tiny_magi1()
    assert torch.equal(latents(world, chunks=3), latents(world, chunks=3, seed=1234))
    assert not close(latents(world, chunks=3), latents(world, chunks=3, seed=5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kv_ranges": (1, 2, 3)}, "not a multiple of the 3"),
        ({"max_kv_range": 3}, "max_kv_range 3: a whole number, 5 or more"),
        ({"kv_ranges": (), "max_kv_range": 3}, "those see the whole video"),
        ({"guidance_scale": 2.0}, "guidance_scale is for other worlds"),
        ({"seed": -1}, "seed -1"),
        ({"clean_t": 2.0}, "clean_t 2.0"),
        ({"shortcut_mode": "1,2,3"}, "shortcut_mode"),
        ({"prefix": torch.zeros(16, 2, 4, 4)}, "prefix .* expected"),
        ({"prefix": torch.zeros(16, 0, 4, 6)}, "prefix .* T 1 or more"),
        ({"noise": torch.zeros(16, 2, 4, 6)}, "noise .* expected"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        video(tiny_magi1(), **arguments)


def test_chunks_are_told_before_they_are_made() -> None:
    world = tiny_magi1()
    layout = world_layout(world, 3 * F - 1, prefix_latent_frames=1)
    chunks: list[GeneratedChunk] = list(
        generate(world, "a", num_frames=3 * F - 1, prefix=pinned(1))
    )
    told = [stop - first for first, stop in layout.chunk_frames()]
    assert told == [len(chunk.frames) for chunk in chunks] == [F, F, F - 1]


def test_nothing_that_comes_out_is_bound_to_inference_mode() -> None:
    chunk = next(video(tiny_magi1()))
    chunk.latents.requires_grad_().sum().backward()
    assert torch.is_inference_mode_enabled() is False
