"""Dreams from real prefixes: what a batch gives is what a single rollout gives."""

from itertools import product

import numpy as np
import torch

from magi_world.evaluation.clips import Clips, Episode, cut_clips
from magi_world.evaluation.dreaming import (
    DreamSettings,
    batches,
    decode_chunks,
    dream,
    encode_chunks,
    through_vae,
)
from magi_world.training.episodes import EpisodeData
from magi_world.world import World


def some_clips(episodes: list[EpisodeData], count: int) -> Clips:
    held: list[Episode] = list(episodes)
    return cut_clips(held, count, prefix=3, horizon=2, seed=0)


def test_a_dream_is_a_rollout_given_the_real_prefix(
    tiny_world: World, episodes: list[EpisodeData]
) -> None:
    clips = some_clips(episodes, 1)
    actions = np.array([[2, 1]])
    dreamed = dream(tiny_world, clips, actions, DreamSettings(batch_size=1, seed=5))

    prompts = tiny_world.card["prompts"]
    given = [prompts[action] for action in clips.actions[0, :3]]
    rollout = tiny_world.rollout(1, seeds=[5])
    rollout.reset(video=clips.frames[0, :3].reshape(12, 64, 64, 3), prompts=given)
    assert dreamed.shape == (1, 4, 4, 64, 64, 3)
    assert (dreamed[:, :2] == through_vae(tiny_world, clips.frames[:1, 1:3])).all()
    expected = [rollout.step([prompts[action]]).frames[0] for action in (2, 1)]
    assert (dreamed[0, 2:] == torch.stack(expected).numpy()).all()


def test_the_words_are_what_is_dreamed_under(
    tiny_world: World, episodes: list[EpisodeData]
) -> None:
    clips, settings = some_clips(episodes, 3), DreamSettings(batch_size=2)
    actions = np.ones((3, 2), np.int64)
    plain = dream(tiny_world, clips, actions, settings)
    names = {place: "strafe left" for place in product(range(3), range(2))}
    assert (dream(tiny_world, clips, actions, settings, phrases=names) == plain).all()
    other = names | {(2, 1): "strafe right"}
    changed = dream(tiny_world, clips, actions, settings, phrases=other) != plain
    places = product(range(3), range(4))
    assert [bool(changed[place].any()) for place in places] == [*[False] * 11, True]


def test_batches_have_one_width_and_a_seed_for_every_clip(episodes: list[EpisodeData]) -> None:
    clips = some_clips(episodes, 5)
    kept, seeds = [], []
    for rows, batch, own_seeds in batches(clips, DreamSettings(batch_size=3, seed=100)):
        assert len(batch) == 3
        count = rows.stop - rows.start
        assert (batch.frames[:count] == clips.frames[rows]).all()
        kept += list(range(rows.start, rows.stop))
        seeds += own_seeds
    assert kept == list(range(5))
    assert seeds == list(range(100, 106))


def test_chunks_are_coded_alone(tiny_world: World, episodes: list[EpisodeData]) -> None:
    chunks = episodes[0].frames[:5]
    latents = encode_chunks(tiny_world, chunks, block=2)
    assert latents.shape == (5, *tiny_world.config.latent_shape)
    assert torch.allclose(latents[3:4], tiny_world.encode(chunks[3:4]), atol=1e-5)
    assert decode_chunks(tiny_world, latents, block=3).shape == chunks.shape
