"""A whole training on a few dozen pictures: three stages, a world at the end, and resuming."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from magi_world.errors import (
    CheckpointError,
    DatasetError,
    RecipeError,
    WorldNotFound,
)
from magi_world.training import run
from magi_world.training.dit_stage import DiTStage
from magi_world.training.recipe import Recipe
from magi_world.training.store import open_store
from magi_world.world import load
from tests.training.toy import (
    PROMPTS,
    SIZE,
    record,
    same_world,
    tensors_of,
    train,
)

# -------------------------------------------------------------------- the world


def test_the_world_can_be_loaded_and_stepped(trained: Path) -> None:
    world = load(trained / "world")
    assert world.card["prompts"] == PROMPTS and world.config.chunk_frames == 4
    rollout = world.rollout(2, seeds=[0, 1])
    first = rollout.reset()
    assert first.frames.shape == (2, 4, SIZE, SIZE, 3)
    chunk = rollout.step(["left", "somewhere else"])
    assert chunk.latents.isfinite().all() and list(chunk.signals) == ["damage"]


def test_the_card_says_what_was_done(trained: Path, recipe: Recipe) -> None:
    card = json.loads((trained / "world" / "world.json").read_text(encoding="utf-8"))
    store = open_store(trained / "store")
    assert card["data"] == {**store.summary(), "datasets": {"toy-v0": card["data"]["real_tics"]}}
    assert card["data"]["episodes"] == 24 and card["data"]["held_out_episodes"] == 2
    assert card["training"]["recipe"] == "toy"
    for stage in ("vae", "dit", "outcome"):
        assert card["training"][f"{stage}_steps"] == 4
        assert card["training"][f"{stage}_minutes"] >= 0
    assert card["horizon"] == 20 and card["fps"] == 35
    assert recipe.config.sampling.scale_factor == 1.0  # the recipe itself is left alone
    assert "scale_factor" not in recipe.card


def test_latents_have_unit_deviation(trained: Path) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    latents = store.latents().astype(np.float32)
    assert latents.shape == (len(store.action), *world.config.latent_shape)
    assert latents[~store.held_out].std() == pytest.approx(1.0, abs=2e-3)
    encoded = world.encode(np.ascontiguousarray(store.frames[:6])).numpy()
    # the world's weights are rounded to bfloat16, the store's latents are not
    assert np.abs(encoded - latents[:6]).max() < 0.05 * np.abs(latents[:6]).max()


def test_the_bank_holds_the_openings_and_clips(trained: Path) -> None:
    world, store = load(trained / "world"), open_store(trained / "store")
    bank = world.bank
    assert bank.num_openings == 1  # every episode begins with the same picture
    assert bank.latents[0].shape[0] == 1 and bank.prompts[0] == ("rest",)
    assert len(bank) > 20
    latents = torch.from_numpy(store.latents()).bfloat16().float()
    training = np.flatnonzero(~store.held_out)
    ends = set((store.offsets[1:] - 1).tolist())
    seen = set()
    length = world.config.sampling.kv_range - 1  # what the next chunk can see
    for index in range(1, len(bank)):
        clip, prompts = bank.clip(index)
        assert clip.shape[0] == length == len(prompts)
        rows = [row for row in training if torch.equal(latents[row], clip[0])]
        fits = [row for row in rows if torch.equal(latents[row : row + length], clip)]
        assert fits  # consecutive chunks of a training episode, in no case its last
        assert any(not ends & set(range(row, row + length)) for row in fits)
        assert any(
            prompts == tuple(PROMPTS[a] for a in store.action[row : row + length]) for row in fits
        )
        seen.add(clip.numpy().tobytes())
    assert len(seen) > 10


def test_what_a_run_leaves_behind(trained: Path) -> None:
    for stage in ("vae", "dit", "outcome"):
        assert (trained / f"{stage}.checkpoint.safetensors").is_file()
        assert list((trained / "tensorboard" / stage).glob("events.*"))
    assert not list(trained.rglob("*partial*"))


# -------------------------------------------------------------------- resuming


def test_a_run_is_not_overwritten(trained: Path, recipe: Recipe, data: Path) -> None:
    with pytest.raises(RecipeError, match="holds a run already: resume it"):
        train(recipe, data, trained)


def test_a_finished_run_resumes_to_the_same_world(
    trained: Path, recipe: Recipe, tmp_path: Path
) -> None:
    before = tensors_of(trained / "world")
    train(recipe, None, trained, resume=True)  # the store has the data
    after = tensors_of(trained / "world")
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_stage_by_stage_is_all_at_once(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "parts"
    train(recipe, data, out, stages=["vae"])
    with pytest.raises(RecipeError, match="stage 'dit' is not finished"):
        train(recipe, data, out, stages=["outcome"], resume=True)
    train(recipe, data, out, stages=["dit"], resume=True)
    train(recipe, data, out, stages=["outcome"], resume=True)
    assert same_world(trained, out)


def test_an_interrupted_run_resumes_to_the_same_world(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss: Callable[..., Any] = DiTStage.loss
    calls: Iterator[int] = iter(range(100))

    def interrupted(self: DiTStage, generator: torch.Generator) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return loss(self, generator)

    monkeypatch.setattr(DiTStage, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, data, tmp_path)
    assert not (tmp_path / "world").exists()
    torch.manual_seed(7)
    train(recipe, data, tmp_path, resume=True)
    assert same_world(trained, tmp_path)


def test_a_vae_that_learns_on_makes_new_latents(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    train(recipe, data, tmp_path, stages=["vae"])
    store = open_store(tmp_path / "store")
    before = store.latents()
    (tmp_path / "store" / "mirrored.npy").touch()
    longer = replace(recipe, vae=replace(recipe.vae, steps=8))
    world = train(longer, data, tmp_path, stages=["vae"], resume=True)
    assert not np.array_equal(store.latents(), before)
    assert not (tmp_path / "store" / "mirrored.npy").exists()
    encoded = world.encode(np.ascontiguousarray(store.frames[:4])).numpy()
    latents = store.latents()[:4].astype(np.float32)
    assert np.abs(encoded - latents).max() < 0.05 * np.abs(latents).max()


def test_a_store_of_other_data_is_refused(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    train(recipe, data, tmp_path / "run", stages=["vae"])
    other = record(tmp_path / "other", range(20))
    with pytest.raises(RecipeError, match="other data"):
        train(recipe, other, tmp_path / "run", stages=["vae"], resume=True)


# -------------------------------------------------------------------- beginning with a world


def test_a_run_may_begin_with_a_world(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    """The VAE and the scale stay, the DiT goes on from where it was."""
    gentle = replace(recipe, dit=replace(recipe.dit, steps=1, learning_rate=1e-9))
    world = train(gentle, data, tmp_path, stages=["dit"], init=trained / "world")
    before, after = tensors_of(trained / "world"), tensors_of(tmp_path / "world")
    assert not (tmp_path / "vae.checkpoint.safetensors").exists()
    for name in before:
        if name.startswith(("vae", "dit", "text", "outcome")):
            assert torch.equal(before[name], after[name]), name
    first = load(trained / "world")
    assert world.config.sampling == first.config.sampling
    assert world.card["training"]["begun_with"] == {**first.card["training"], "real_tics": 0}
    datasets = world.card["data"]["datasets"]
    assert sum(datasets.values()) == world.card["data"]["real_tics"] > 0
    assert world.card["training"]["dit_steps"] == 1
    again = train(
        gentle, data, tmp_path, stages=["dit", "outcome"], init=trained / "world", resume=True
    )
    assert again.card["training"]["outcome_steps"] == 4


def test_a_run_goes_on_with_the_world_that_it_began_with(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(recipe, data, out, stages=["dit"], init=trained / "world", init_parts=["vae"])
    with pytest.raises(RecipeError, match=r"begun with --init .*world, not .*elsewhere"):
        train(recipe, None, out, init=tmp_path / "elsewhere", resume=True)
    with pytest.raises(RecipeError, match=r"begun with parts \['vae'\], not \['dit', 'vae'\]"):
        train(recipe, None, out, init_parts=["vae", "dit"], resume=True)
    other = replace(recipe, path=tmp_path / "another.toml")
    with pytest.raises(RecipeError, match=r"begun with recipe .*, not another"):
        train(other, None, out, resume=True)
    world = train(recipe, None, out, resume=True, stages=["dit", "outcome"])
    assert world.card["training"]["begun_with"]["recipe"] == recipe.path.stem
    assert "vae_steps" not in world.card["training"]  # it came with the world


def test_another_model_may_learn_on_the_latents_of_a_world(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    """With the VAE alone, the DiT has another shape and begins anew."""
    smaller = replace(recipe.config.dit, patch_size=1, ffn_hidden_size=32)
    other = replace(recipe, config=replace(recipe.config, dit=smaller))
    arguments: dict[str, Any] = {"init": trained / "world", "init_parts": ["vae"]}
    with pytest.raises(RecipeError, match="'dit' is not finished"):
        train(other, data, tmp_path / "late", stages=["outcome"], **arguments)
    world = train(other, data, tmp_path / "run", stages=["dit", "outcome"], **arguments)
    before, after = tensors_of(trained / "world"), tensors_of(tmp_path / "run" / "world")
    assert all(torch.equal(before[name], after[name]) for name in before if name[:3] == "vae")
    assert world.config.dit == smaller and world.card["training"]["dit_steps"] == 4
    assert world.config.sampling == load(trained / "world").config.sampling


def test_parts_to_begin_with_are_checked_first(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no world"):
        train(recipe, data, tmp_path, init_parts=["vae"])
    with pytest.raises(RecipeError, match=r"unknown parts \['decoder'\]"):
        train(recipe, data, tmp_path, init="doom-take-cover", init_parts=["decoder"])
    assert not list(tmp_path.iterdir())


def test_the_tics_of_earlier_worlds_are_counted_once(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    """Data that an earlier world had and this one has too counts once, other data is added."""
    earlier = load(trained / "world")
    (name, tics), *_ = earlier.card["data"]["datasets"].items()
    earlier.card["data"]["datasets"] = {name: tics, "other-v0": 50}
    earlier.card["data"]["real_tics"] = earlier.card["data"]["real_tics"] + 50
    earlier.card["training"]["begun_with"] = {"real_tics": 7}
    earlier.save(tmp_path / "earlier")
    gentle = replace(recipe, dit=replace(recipe.dit, steps=1))
    world = train(gentle, data, tmp_path / "run", stages=["dit"], init=tmp_path / "earlier")
    assert world.card["training"]["begun_with"]["real_tics"] == 57


def test_a_world_of_another_shape_is_no_beginning(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    assert recipe.config.outcome is not None
    wider = replace(recipe.config, outcome=replace(recipe.config.outcome, hidden_size=48))
    with pytest.raises(CheckpointError, match="cannot be begun with"):
        train(replace(recipe, config=wider), data, tmp_path, init=trained / "world")
    deep = replace(recipe.config, dit=replace(recipe.config.dit, hidden_size=32, kv_channels=16))
    with pytest.raises(CheckpointError, match="cannot be begun with") as caught:
        train(replace(recipe, config=deep), data, tmp_path / "deep", init=trained / "world")
    assert len(str(caught.value)) < 300 and not (tmp_path / "deep").exists()
    with pytest.raises(WorldNotFound):
        train(recipe, data, tmp_path / "deep", init=tmp_path / "nowhere")
    assert not (tmp_path / "deep").exists()  # said before any data was read
    finer = replace(recipe.config.dit, predicts="clean", previous_chunk=True, patch_size=1)
    with pytest.raises(CheckpointError, match="cannot be begun with"):
        other = replace(recipe, config=replace(recipe.config, dit=finer))
        train(other, data, tmp_path / "finer", stages=["dit"], init=trained / "world")
    bare = replace(recipe.config, outcome=None)
    train(replace(recipe, config=bare), data, tmp_path / "bare")
    with pytest.raises(CheckpointError, match="no outcome to begin with"):
        train(recipe, data, tmp_path / "full", init=tmp_path / "bare" / "world")


# -------------------------------------------------------------------- other data, other recipes


@pytest.mark.parametrize(
    ("stages", "words"),
    [(["vea"], r"unknown stages \['vea'\]; known are"), ([], "stages")],
)
def test_wrong_stages(
    recipe: Recipe, data: Path, tmp_path: Path, stages: list[str], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        train(recipe, data, tmp_path, stages=stages)


def test_data_without_health_teaches_no_signals(recipe: Recipe, tmp_path: Path) -> None:
    data = record(tmp_path / "data", range(20), knows_health=False)
    world = train(recipe, data, tmp_path / "run")
    assert world.config.outcome is not None and world.config.outcome.signals == ()


def test_data_without_a_held_out_part_says_so(recipe: Recipe, tmp_path: Path) -> None:
    data = record(tmp_path / "data", range(10))
    with pytest.raises(DatasetError, match="held.out"):
        train(recipe, data, tmp_path / "run")


def test_episodes_that_are_too_short_are_named(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    long = replace(recipe, dit=replace(recipe.dit, sequence=30))
    with pytest.raises(DatasetError, match="no episode has 30 chunks"):
        train(long, data, tmp_path / "a")
    # the outcome stage needs a sequence behind the reset chunk and another end than the last one
    longer = replace(recipe, dit=replace(recipe.dit, sequence=13))
    with pytest.raises(DatasetError, match="14 chunks, none that ends in a death 21"):
        train(longer, data, tmp_path / "b")


def test_a_recipe_without_a_text_encoder_is_refused(
    recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="no text encoder"):
        train(replace(recipe, config=replace(recipe.config, text=None)), data, tmp_path)


def test_a_world_may_have_no_outcome_heads(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    world = train(replace(recipe, config=replace(recipe.config, outcome=None)), data, tmp_path)
    rollout = world.rollout(1, seeds=[0])
    rollout.reset()
    chunk = rollout.step(["left"])
    assert world.outcome is None and (chunk.reward == 0).all() and not chunk.terminated.any()
    assert not (tmp_path / "outcome.checkpoint.safetensors").exists()


def test_a_stage_that_learns_on_does_not_leave_later_ones_behind(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(trained, tmp_path / "run"))
    longer = replace(recipe, dit=replace(recipe.dit, steps=6))
    with pytest.raises(RecipeError, match="later stages.*outcome.checkpoint.safetensors"):
        train(longer, data, out, resume=True)
    (out / "outcome.checkpoint.safetensors").unlink()
    world = train(longer, data, out, resume=True)
    assert world.card["training"]["dit_steps"] == 6


def test_stages_of_one_process_do_not_disturb_each_other(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    """Masks that generation has used under inference mode serve training again."""
    wide = replace(recipe, dit=replace(recipe.dit, batch_size=16))  # as many as are generated
    train(wide, data, tmp_path / "one")
    train(wide, data, tmp_path / "two")
    assert same_world(tmp_path / "one", tmp_path / "two")


def test_modules_of_run_name_all_stages() -> None:
    assert run.STAGES == ("vae", "dit", "outcome")
