"""A world out of what others recorded: a Minari dataset of steps, and a folder of videos."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from magi_world.evaluation.video import write_mp4
from magi_world.training.reading import Reading
from magi_world.training.recipe import Recipe
from magi_world.world import World, load
from tests.training import test_prepare
from tests.training.toy import PROMPTS, SIZE, episode, train


def steps(world: World) -> None:
    """What comes out can be stepped, and loaded again."""
    rollout = load(world.folder or "").rollout(2, seeds=[0, 1])
    rollout.reset()
    chunk = rollout.step([PROMPTS[1], PROMPTS[2]])
    assert chunk.frames.shape == (2, 4, SIZE, SIZE, 3)
    assert not np.array_equal(chunk.frames[0], chunk.frames[1])


def test_from_a_minari_dataset_of_steps(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = test_prepare.record(tmp_path / "data", monkeypatch, steps=40)
    world = train(replace(recipe, data=Reading(resize=True)), data, tmp_path / "run")
    assert world.card["data"]["episodes"] == 20
    assert world.card["reading"]["resize"] is True
    assert world.card["config"]["outcome"]["signals"] == []  # it tells of no health
    steps(world)


def test_from_videos_with_a_table_of_prompts(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("av")
    folder = tmp_path / "videos"
    folder.mkdir()
    with (folder / "prompts.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "chunk", "prompt"])
        for number in range(20):
            one = episode(number)
            first, later = one.frames[0, -1:], one.frames[1:].reshape(-1, SIZE, SIZE, 3)
            write_mp4(folder / f"{number}.mp4", np.concatenate([first, later]), fps=35)
            for chunk, action in enumerate(one.actions):
                table.writerow([f"{number}.mp4", chunk, PROMPTS[action]])
    watched = replace(recipe, config=replace(recipe.config, outcome=None))
    world = train(watched, folder, tmp_path / "run")
    assert world.outcome is None and world.card["data"]["episodes"] == 20
    steps(world)
