"""Where dreams begin: clips of a run's data, more than a world ships with, or eventful ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from magi_world.agents.files import describe
from magi_world.errors import ConfigError, DatasetError
from magi_world.training.bank import events, make_bank, with_more_clips
from magi_world.training.encoding import encoded_by
from magi_world.training.store import open_store
from magi_world.world import load


def test_more_clips_come_from_the_data_of_a_run(trained: Path) -> None:
    world = load(trained / "world")
    many = with_more_clips(world, trained, clips=10_000)
    assert len(many.bank) > 0 and many.dit is world.dit
    few = with_more_clips(world, trained, clips=2)
    assert len(few.bank) == few.bank.num_openings + 2
    assert "other_bank" not in world.card and many.card["other_bank"]["clips"] == 10_000
    told = {name: describe(w, "ppo", "dream") for name, w in (("own", world), ("few", few))}
    assert "starts_from" not in told["own"] and told["few"]["starts_from"]["clips"] == 2
    assert "starts_from" not in describe(few, "ppo", "real")
    with pytest.raises(DatasetError, match="no folder of train-world"):
        with_more_clips(world, trained / "world", clips=2)


def test_latents_of_another_vae_are_told_from_a_worlds_own(trained: Path) -> None:
    """A world that was trained anew has data which the shipped one would misread."""
    world = load(trained / "world")
    assert encoded_by(world, open_store(trained / "store"))
    with torch.no_grad():
        for weight in world.vae.encoder.last_layer.parameters():
            weight.add_(0.2)
    with pytest.raises(DatasetError, match=r"latents.npy is of another VAE .* --world .*/world"):
        with_more_clips(world, trained, clips=2)


def test_eventful_clips_end_before_something_happens(trained: Path) -> None:
    """In this data a point is made in the sixth chunk behind every reset, and nothing else."""
    world, store = load(trained / "world"), open_store(trained / "store")
    quiet = np.zeros_like(store.reward)
    points = store.offsets[:-1] + 6
    quiet[points] = 1
    quiet[store.offsets[:-1]] = 1  # that of a reset chunk is no reward
    store = replace(
        store, reward=quiet, terminal=np.zeros_like(store.terminal),
        health=np.full_like(store.health, np.nan),
    )  # fmt: skip
    assert np.flatnonzero(events(store)).tolist() == points.tolist()
    near = make_bank(world, store, 10_000, eventful=1.0, soon=2)
    latents, first = store.latents().astype(np.float32), near.num_openings
    assert len(near) == first + 2 * len(store.episodes(held_out=False))
    for clip in range(first, len(near)):
        shown = near.clip(clip)[0].numpy()
        ends = [
            row + len(shown) for row in range(len(latents) - len(shown))
            if np.array_equal(latents[row : row + len(shown)], shown)
        ]  # fmt: skip
        assert {end + ahead for end in ends for ahead in (0, 1)} & set(points.tolist())
    assert len(make_bank(world, store, 6, eventful=0.5)) == first + 6


def test_shares_of_eventful_clips_are_checked(trained: Path) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    with pytest.raises(ConfigError, match=r"between 0 and 1, got 1\.5"):
        make_bank(world, store, 6, eventful=1.5)
    still = replace(
        store, reward=np.zeros_like(store.reward), terminal=np.zeros_like(store.terminal),
        health=np.full_like(store.health, np.nan),
    )  # fmt: skip
    with pytest.raises(DatasetError, match="nothing happens"):
        make_bank(world, still, 6, eventful=0.5)
