"""Settings of a whole training: a compiler that is missing, a decoder alone, several workers."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from magi_world.errors import RecipeError
from magi_world.training import run
from magi_world.training.recipe import Recipe
from magi_world.training.run import train_world
from tests.training.toy import same_world, tensors_of, train


def test_compiling_needs_a_compiler(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "cpp_compiler", lambda: None)
    with pytest.raises(RecipeError, match="needs a C\\+\\+ compiler"):
        train(replace(recipe, dit=replace(recipe.dit, compile=True)), data, tmp_path)


def test_a_decoder_learns_alone_and_latents_stay(
    trained: Path, recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    alone = replace(recipe, vae=replace(recipe.vae, decoder_only=True))
    with pytest.raises(RecipeError, match="decoder_only needs a VAE to begin with"):
        train(alone, data, tmp_path)
    train(alone, data, tmp_path, stages=["vae"], init=trained / "world")
    before, after = tensors_of(trained / "world"), tensors_of(tmp_path / "world")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    # the bank is encoded again, by an encoder whose weights were rounded when they were saved
    changed.remove(latents := "bank.safetensors:latents")
    assert changed and all(name.startswith("vae.safetensors:decoder.") for name in changed)
    bank = before[latents].float()
    assert (after[latents].float() - bank).abs().max() < 0.05 * bank.abs().max()


def test_two_workers_share_a_batch_and_resume_bit_by_bit(
    recipe: Recipe, data: Path, tmp_path: Path
) -> None:
    shared = replace(recipe, dit=replace(recipe.dit, workers=2))
    longer = replace(shared, dit=replace(shared.dit, steps=6, cooldown=0.0))
    threads = torch.get_num_threads()
    train(longer, data, tmp_path / "whole", stages=["vae", "dit"])
    assert torch.get_num_threads() == threads  # the workers' share was given back
    first = replace(longer, dit=replace(longer.dit, steps=4))
    train(first, data, tmp_path / "parts", stages=["vae", "dit"])
    train(longer, data, tmp_path / "parts", resume=True, stages=["vae", "dit"])
    assert same_world(tmp_path / "whole", tmp_path / "parts")


def test_resuming_with_other_settings_is_told(recipe: Recipe, data: Path, tmp_path: Path) -> None:
    begun = replace(recipe, vae=replace(recipe.vae, steps=2))
    train(begun, data, tmp_path, stages=["vae"])
    quiet, told = (Console(file=io.StringIO(), width=400) for _ in range(2))
    train_world(begun, [], tmp_path, stages=["vae"], resume=True, console=quiet)
    assert "other settings" not in quiet.file.getvalue()  # type: ignore[attr-defined]
    faster = replace(begun, vae=replace(begun.vae, steps=1, learning_rate=0.5))
    world = train_world(faster, [], tmp_path, stages=["vae"], resume=True, console=told)
    words = told.file.getvalue()  # type: ignore[attr-defined]
    assert "vae.steps 2 is 1 now" in words and "vae.learning_rate 0.001 is 0.5 now" in words
    assert world.card["training"]["vae_steps"] == 2  # those that were done
