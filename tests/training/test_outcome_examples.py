"""The chunks that outcome heads learn from."""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magi_world.training.episodes import EpisodeData
from magi_world.training.outcome_stage import generate_examples
from magi_world.training.store import Store, build_store
from magi_world.world import World, load
from tests.training.toy import (
    PROMPTS,
    episode,
)


def long_store(folder: Path, world: World) -> Store:
    """A store of random latents: 60 training episodes of 20 to 50 chunks, half of them die."""
    rng = np.random.default_rng(0)

    def episodes() -> Iterator[EpisodeData]:
        for number in range(60):
            one = episode(number)
            steps = int(rng.integers(20, 50))
            yield replace(
                one, frames=np.zeros((steps + 1, 4, 1, 1, 3), np.uint8),
                actions=rng.integers(0, 3, steps), rewards=np.full(steps, 4, np.float32),
                valid_frames=np.full(steps + 1, 4), health=np.full(steps + 1, 90, np.float32),
            )  # fmt: skip

    store = build_store(episodes(), folder, lambda seed: False, 60 * 51)
    shape = (len(store.action), *world.config.latent_shape)
    np.save(store.latents_path, rng.standard_normal(shape).astype(np.float16))
    return store


def test_weighted_examples_are_as_deadly_as_the_data(trained: Path, tmp_path: Path) -> None:
    world = load(trained / "world")
    store = long_store(tmp_path, world)
    examples = generate_examples(world, store, length=8, chunks=800, held_out=False, seed=0)
    assert {name: len(tensor) for name, tensor in examples.items()} == dict.fromkeys(
        ["hidden", "reward", "terminal", "signals", "weight"], len(examples["weight"])
    )
    weight, terminal = examples["weight"], examples["terminal"]
    share = float((weight * terminal).sum() / weight.sum())
    assert share == pytest.approx(store.terminal.mean(), rel=0.15)
    assert terminal.mean() > 2 * store.terminal.mean()  # ends are drawn more often


def test_rare_points_are_drawn_more_often_and_weighted_back(trained: Path, tmp_path: Path) -> None:
    world = load(trained / "world")
    store = long_store(tmp_path, world)
    rng = np.random.default_rng(1)
    points = (rng.random(len(store.action)) < 0.02) & ~store.terminal
    reward = np.where(points, 1.0, 4.0).astype(np.float32)
    examples = generate_examples(
        world, replace(store, reward=reward), length=8, chunks=1600, held_out=False, seed=0
    )
    drawn, weight = examples["reward"] == 1.0, examples["weight"]
    share = float((weight * drawn).sum() / weight.sum())
    assert share == pytest.approx(points.mean(), rel=0.2)
    assert drawn.float().mean() > 2 * points.mean()


def test_heads_of_a_dit_of_several_ranges_see_them_all(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magi_world.training import outcome_stage

    seen: set[int | None] = set()
    one_step_ahead = outcome_stage._one_step_ahead

    def spy(*args: Any) -> Any:
        seen.add(args[-2])
        return one_step_ahead(*args)

    monkeypatch.setattr(outcome_stage, "_one_step_ahead", spy)
    world = load(trained / "world")
    store = long_store(tmp_path, world)
    make = partial(generate_examples, world, store, length=8, chunks=1600, held_out=False, seed=0)
    plain = make()
    assert seen == {None}
    ranged = make(most_kv_range=4)
    assert seen == {None, 1, 2, 4}
    assert not torch.equal(plain["hidden"], ranged["hidden"])


def test_examples_are_generated_one_step_ahead(trained: Path, tmp_path: Path) -> None:
    """The generated half of the examples is what rollouts over the real history give."""
    from magi_world.training import outcome_stage

    world = load(trained / "world")
    S, L = 2, 6
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(S * L, *world.config.latent_shape, generator=generator)
    action = torch.randint(3, (S * L,), generator=generator)
    with torch.inference_mode():
        x, hidden = outcome_stage._one_step_ahead(
            world, real, action, (S, L), outcome_stage._captions(world), None,
            torch.Generator().manual_seed(5),
        )  # fmt: skip
        judged = world.judge(x, hidden[S * L :], [None] * (S * L))
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(5))
    rollout = world.rollout(S, seeds=range(S))
    rollout.reset(prompt="rest")
    for slot in range(S):
        rollout.cache.clear(slot)
    rollout.time = [0] * S
    by_time = [t.unflatten(0, (S, L)) for t in (real, noise, x)]
    probability = judged.termination_probability.view(S, L)
    for i in range(L):
        prompts = [PROMPTS[int(a)] for a in action.view(S, L)[:, i]]
        ahead = rollout.fork(range(S))
        with torch.no_grad():
            places = ahead._places(range(S))
            mine = ahead.sampler.denoise(by_time[1][:, i], prompts, places)
        torch.testing.assert_close(mine, by_time[2][:, i], rtol=1e-4, atol=1e-4)
        seen = ahead.observe(by_time[2][:, i], prompts).termination_probability
        torch.testing.assert_close(seen, probability[:, i], rtol=1e-4, atol=1e-4)
        rollout.observe(by_time[0][:, i], prompts)
