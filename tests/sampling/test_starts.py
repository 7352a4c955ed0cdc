"""Clips of the bank, replayed side by side ahead of their resets."""

import pytest
import torch

from magi_world.sampling.starts import replay_together
from magi_world.world import World
from tests.tiny_world import PROMPTS


def test_prepared_clips_begin_as_replayed_ones(tiny_world: World) -> None:
    ready, lazy = (tiny_world.rollout(2, seeds=[1, 2]) for _ in range(2))
    ready.prepare_clips()
    clips = len(tiny_world.bank)
    assert sorted(ready.clips.kept) == list(range(clips))
    for clip in range(clips):
        first = [rollout.reset(clip=[clip, clip], seeds=[1, 2]) for rollout in (ready, lazy)]
        then = [rollout.step(PROMPTS[:2]) for rollout in (ready, lazy)]
        for mine, other in (first, then):
            torch.testing.assert_close(mine.latents, other.latents, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(mine.termination_probability, other.termination_probability)
            assert mine.prompts == other.prompts
        assert first[0].reward.eq(0).all()


def test_prepared_clips_keep_no_autograd_graph(tiny_world: World) -> None:
    """With one they held all activations of their replay, 15 MB a clip of a shipped world."""
    rollout = tiny_world.rollout()
    rollout.prepare_clips()
    for start in rollout.clips.kept.values():
        assert start.cache.keys_LRKD.grad_fn is None
        assert not start.chunk.termination_probability.requires_grad


def test_only_clips_of_one_length_go_side_by_side(tiny_world: World) -> None:
    rollout = tiny_world.rollout()
    with pytest.raises(ValueError, match="one length"):
        replay_together(rollout.sampler, [tiny_world.bank.clip(0), tiny_world.bank.clip(1)])
