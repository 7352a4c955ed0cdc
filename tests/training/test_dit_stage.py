"""What the second stage learns from: histories of its own, and the energy score of its sampler."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_world.compiler import cpp_compiler
from magi_world.training import dit_stage
from magi_world.training.dit_stage import DiTStage
from magi_world.training.loop import Trainer
from magi_world.training.recipe import Recipe
from magi_world.training.store import open_store
from magi_world.training.teacher_forcing import teacher_forced_inputs
from magi_world.world import World, load
from tests.training.toy import (
    train,
)


def test_histories_are_in_part_the_models_own(trained: Path, recipe: Recipe) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    stages = {
        share: DiTStage(world, store, replace(recipe.dit, own_history=share, copies=2))
        for share in (0.0, 1.0)
    }
    seen = {}
    for share, stage in stages.items():
        given: list[Tensor] = []
        history = stage._history

        def spy(x: Tensor, *rest: Any, history: Any = history, given: Any = given) -> Tensor:
            out: Tensor = history(x, *rest)
            given.append((out != x).flatten(1).any(1))
            return out

        stage._history = spy  # type: ignore[assignment, method-assign]
        for seed in range(6):
            loss, _ = stage.loss(torch.Generator().manual_seed(seed))
            assert loss.isfinite() and loss.requires_grad
        seen[share] = torch.cat(given).float().mean().item()
    assert seen[0.0] == 0.0
    assert 0.2 < seen[1.0] < 0.8


def test_own_histories_begin_when_the_model_is_no_longer_young(
    trained: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    settings = replace(
        recipe.dit, objective="flow", own_history=1.0, own_after=0.5, steps=4, sample_every=100
    )
    stage: Any = DiTStage(world, store, settings)
    generated_at: list[float] = []

    def generate(_world: World, _shape: Any, history: Tensor, _noise: Tensor, **_: Any) -> Tensor:
        generated_at.append(stage.progress)
        return history

    monkeypatch.setattr(dit_stage, "generate_one_step_ahead", generate)
    Trainer(stage, settings, tmp_path).run()
    assert set(generated_at) == {0.5, 0.75}


def test_deep_histories_follow_generated_chunks(
    trained: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At depth k a chunk is generated over chunks that were generated at depth k - 1."""
    world, store = load(trained / "world"), open_store(trained / "store")
    stage = DiTStage(world, store, replace(recipe.dit, own_history=1.0, own_depth=3))
    given: list[Tensor] = []

    def count_up(world: World, shape: Any, history: Tensor, noise: Tensor, **_: Any) -> Tensor:
        given.append(history)
        S, L = shape  # one more than the chunk before it
        later: Tensor = history.unflatten(0, (S, L)).roll(1, dims=1).flatten(0, 1) + 1
        return later

    monkeypatch.setattr(dit_stage, "generate_one_step_ahead", count_up)
    x = torch.zeros(2 * 6, *world.config.latent_shape)
    depths = set()
    for seed in range(12):
        given.clear()
        history = stage._history(x, (2, 6), {}, torch.Generator().manual_seed(seed))
        assert len(given) <= 3 and torch.equal(given[0], x)
        assert history.unflatten(0, (2, 6))[:, 0].eq(0).all()  # nothing comes before the first
        assert history.max() <= len(given)
        depths.add(len(given))
    assert depths == {1, 2, 3}


def test_unusual_places_of_the_chunk_before_weigh_more(trained: Path, recipe: Recipe) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    stage = DiTStage(world, store, replace(recipe.dit, unusual_weight=2.0))
    history = stage.mean_CPHW.repeat(2 * 5, 1, 1, 1, 1)
    history[1 * 5 + 2, :, 0, 1, 1] += 3.0  # sequence 1, chunk 2
    weight = stage._unusual(history, (2, 5)).unflatten(0, (2, 5))
    assert weight.mean().item() == pytest.approx(1.0, abs=0.1)
    usual = weight[0, 1, 0, 0]
    assert weight[1, 3, :3, :3].gt(2 * usual).all()  # the place and those beside it, one later
    weight[1, 3, :3, :3] = usual
    assert torch.allclose(weight[:, 1:], usual.expand_as(weight[:, 1:]))


def test_chunks_under_a_new_action_and_behind_it_weigh_more(trained: Path, recipe: Recipe) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    stage = DiTStage(world, store, replace(recipe.dit, turn_weight=2.0))
    actions = torch.tensor([[0, 0, 1, 1, 1, 2], [1, 0, 0, 0, 0, 0], [2, 2, 2, 2, 2, 2]])
    weights = stage._turns(actions).unflatten(0, (3, 6))
    assert weights.tolist() == [[1, 1, 3, 3, 1, 3], [1, 3, 3, 1, 1, 1], [1] * 6]
    plain = DiTStage(world, store, recipe.dit)._turns(actions)
    assert plain.eq(1).all()


def test_the_energy_objective_trains_the_worlds_own_sampler(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    settings = replace(
        recipe.dit, objective="energy", copies=2, own_history=1.0, own_depth=2, steps=2
    )
    energetic = replace(recipe, dit=settings)
    world = train(energetic, data, tmp_path, stages=["dit"], init=trained / "world")
    assert world.card["training"]["dit_steps"] == 2
    stage = DiTStage(world, open_store(trained / "store"), settings)
    loss, scalars = stage.loss(torch.Generator().manual_seed(0))
    loss.backward()
    assert 0 < loss.item() < 2 and set(scalars) == {"first_chunk", "last_chunk"}
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in world.dit.layers[0].parameters()
    )


def test_every_batch_draws_its_kv_range(
    trained: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    seen: dict[int, set[int | None]] = {0: set(), 4: set()}
    for most, ranges in seen.items():
        stage = DiTStage(world, store, replace(recipe.dit, most_kv_range=most))
        inputs = teacher_forced_inputs

        def spy(*args: Any, inputs: Any = inputs, ranges: Any = ranges, **given: Any) -> Any:
            ranges.add(given["kv_range"])
            return inputs(*args, **given)

        monkeypatch.setattr(dit_stage, "teacher_forced_inputs", spy)
        for seed in range(20):
            stage.loss(torch.Generator().manual_seed(seed))
        monkeypatch.undo()
    assert seen == {0: {None}, 4: {1, 2, 4}}


def test_a_shallower_world_is_a_beginning(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    config = replace(recipe.config, dit=replace(recipe.config.dit, num_layers=4))
    gentle = replace(recipe, config=config, dit=replace(recipe.dit, steps=1, learning_rate=1e-9))
    world = train(gentle, data, tmp_path, stages=["dit"], init=trained / "world")
    assert len(world.dit.layers) == 4
    rows = [w.rollout(2, seeds=[1, 2]) for w in (world, load(trained / "world"))]
    first, deep = (row.reset(prompt="go left").latents for row in rows)
    assert torch.allclose(first, deep, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(cpp_compiler() is None, reason="no C++ compiler")
def test_compiled_layers_learn_the_same(trained: Path, recipe: Recipe) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    results = []
    for compile in (False, True):
        stage = DiTStage(world, store, replace(recipe.dit, compile=compile))
        stage.module.zero_grad()
        loss, _ = stage.loss(torch.Generator().manual_seed(5))
        loss.backward()
        named = world.dit.named_parameters()
        gradients = {name: p.grad.clone() for name, p in named if p.grad is not None}
        results.append((loss.detach(), gradients))
        assert "finish" not in vars(world.dit.layers[0])  # the model is left as it was
    (plain, expected), (compiled, gradients) = results
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5)
