"""Data that cannot be used is refused with one error before anything trains."""

import io
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from rich.console import Console

from magi_world.errors import DatasetError, RecipeError
from magi_world.training.prepare import prepare
from magi_world.training.reading import Reading
from magi_world.training.recipe import Recipe, load_recipe
from magi_world.training.store import Store

PICTURE = spaces.Box(0, 255, (64, 64, 3), np.uint8)
STAGES = ("vae", "dit", "outcome")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe("doom_take_cover", dit={"sequence": 4})


def record(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    space: Any = PICTURE,
    actions: Any = None,
    steps: int = 24,
    episodes: int = 20,
    pattern: Sequence[int] = (0, 0, 0, 0, 1, 1, 1, 1),
) -> Path:
    """A dataset of steps, as somebody else would record it."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    actions = actions or spaces.Discrete(3)
    taken: Any = np.resize(pattern, steps)
    if not isinstance(actions, spaces.Discrete):
        taken = np.zeros((steps, *actions.shape), actions.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers(
            "other/game-v0",
            [
                EpisodeBuffer(
                    observations=np.full((steps + 1, *space.shape), number, np.uint8),
                    actions=taken,
                    rewards=np.ones(steps),
                    terminations=np.zeros(steps, bool),
                    truncations=np.arange(steps) == steps - 1,
                )
                for number in range(episodes)
            ],
            observation_space=space,
            action_space=actions,
            data_format="hdf5",
            jpeg_encoding=False,
        )
    return root / "other" / "game-v0"


def run(recipe: Recipe, data: Sequence[Path], out: Path, stages: Sequence[str] = STAGES) -> Store:
    return prepare(recipe, data, out, stages, Console(file=io.StringIO()))


def test_steps_of_others_become_a_store(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = record(tmp_path / "data", monkeypatch, steps=32)
    store = run(recipe, [data], tmp_path / "run")
    assert store.frames.shape == (20 * 9, 4, 64, 64, 3)
    assert store.action[:9].tolist() == [0, 0, 1, 0, 1, 0, 1, 0, 1]
    assert np.isnan(store.health).all() and (store.reward[1:9] == 4).all()


def test_pictures_are_shrunk_when_the_recipe_says_so(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = spaces.Box(0, 255, (30, 40, 3), np.uint8)
    data = record(tmp_path / "data", monkeypatch, space=space)
    with pytest.raises(DatasetError, match=r"frames of \(30, 40\) .*recipe of \(64, 64\)"):
        run(recipe, [data], tmp_path / "run")
    willing = replace(recipe, data=Reading(resize=True))
    assert run(willing, [data], tmp_path / "run").frames.shape[2:] == (64, 64, 3)


def test_frames_of_different_sizes(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = record(tmp_path / "one", monkeypatch)
    space = spaces.Box(0, 255, (32, 32, 3), np.uint8)
    other = record(tmp_path / "other", monkeypatch, space=space)
    willing = replace(recipe, data=Reading(resize=True))
    for any_recipe in (recipe, willing):
        with pytest.raises(
            DatasetError, match=r"frames of different sizes.*\(64, 64\), .*\(32, 32"
        ):
            run(any_recipe, [one, other], tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (
            {"actions": spaces.Box(-1, 1, (2,), np.float32)},
            "actions must be Discrete, they are Box",
        ),
        ({"actions": spaces.Discrete(4)}, "4 actions, the recipe's card the prompts .*stand still"),
        ({"steps": 3, "pattern": (0,)}, "shorter than one chunk of 4 steps"),
        ({"pattern": (0, 1)}, "the action changes within a chunk"),
        ({"episodes": 10}, "no episode is in the held-out part: there are 10, every twentieth"),
        ({"steps": 8}, "no episode has 4 chunks, the longest one has 3: shorten `sequence`"),
        ({"steps": 12}, "no episode that goes on has 5 chunks, none that ends in a death 7"),
        (
            {"space": spaces.Box(0, 255, (8, 64, 64, 3), np.uint8)},
            "chunks of 8 frames, the recipe of 4",
        ),
    ],
)
def test_bad_data_is_named(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dataset: dict[str, Any],
    words: str,
) -> None:
    data = record(tmp_path / "data", monkeypatch, **dataset)
    with pytest.raises(DatasetError, match=words):
        run(recipe, [data], tmp_path / "run")
    assert not list(tmp_path.glob("run/store/*.partial*"))


def test_what_fails_on_the_way_leaves_nothing_behind(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = record(tmp_path / "good", monkeypatch)
    mixed = record(tmp_path / "mixed", monkeypatch, pattern=(0, 0, 0, 0, 0, 1, 1, 1))
    mixed = mixed.rename(mixed.with_name("mixed-v0"))
    with pytest.raises(DatasetError, match="changes within a chunk"):
        run(recipe, [good, mixed], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    store = run(recipe, [good], tmp_path / "run").folder
    kept = sorted(store.iterdir())
    with pytest.raises(DatasetError, match="changes within a chunk"):
        run(recipe, [good, mixed], tmp_path / "run")
    assert sorted(store.iterdir()) == kept
    assert run(recipe, [good], tmp_path / "run").summary()["episodes"] == 20


def test_a_store_of_another_recipe(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = record(tmp_path / "data", monkeypatch, pattern=(0, 0, 0, 0, 2, 2, 2, 2))
    run(recipe, [data], tmp_path / "run")
    fewer = replace(recipe, card={**recipe.card, "prompts": ["a", "b"], "paraphrases": {}})
    with pytest.raises(RecipeError, match="data of 3 actions or more, the recipe the prompts"):
        run(fewer, [], tmp_path / "run")
    wider = replace(recipe, config=replace(recipe.config, width=96))
    with pytest.raises(RecipeError, match=r"chunks of \[4, 64, 64, 3\], the recipe of .* 96, 3\]"):
        run(wider, [], tmp_path / "run")


def test_nothing_to_go_on_with(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="run/store holds no data that was read before"):
        run(recipe, [], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_dataset_without_actions(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = record(tmp_path / "data", monkeypatch)
    with h5py.File(data / "data" / "main_data.hdf5", "r+") as file:
        for episode in file.values():
            del episode["actions"]
    with pytest.raises(DatasetError, match="episode 0: actions, .* are missing: .*'actions'"):
        run(recipe, [data], tmp_path / "run")


@pytest.mark.parametrize(
    ("column", "change", "words"),
    [
        (
            "observations",
            lambda o: o[:, :32],
            r"different sizes or kinds, uint8 \[32, 64, 3\], the",
        ),
        ("observations", lambda o: o / np.float32(255), "different sizes or kinds, float32 "),
        ("actions", lambda a: a + 2, "actions from 2 to 3, .* 3 whole numbers from 0 on"),
        ("actions", lambda a: a - 1, "actions from -1 to 0"),
        ("actions", lambda a: a + 0.5, "actions from 0.5 to 1.5"),
        ("rewards", lambda r: r * np.nan, "a reward is NaN or infinite"),
    ],
)
def test_an_episode_that_is_not_what_the_dataset_says(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    column: str,
    change: Callable[[Any], Any],
    words: str,
) -> None:
    data = record(tmp_path / "data", monkeypatch)
    with h5py.File(data / "data" / "main_data.hdf5", "r+") as file:
        values = change(file["episode_13"][column][:])
        del file["episode_13"][column]
        file["episode_13"][column] = values
    willing = replace(recipe, data=Reading(resize=True))
    for any_recipe in (recipe, willing):
        with pytest.raises(DatasetError, match=f"episode 13: .*{words}"):
            run(any_recipe, [data], tmp_path / "run")


@pytest.mark.parametrize("name", ["main_data.hdf5", "metadata.json"])
@pytest.mark.parametrize("rest", [None, b"", b"{}", b"{"])
def test_a_damaged_dataset(
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    rest: bytes | None,
) -> None:
    data = record(tmp_path / "data", monkeypatch)
    file = data / "data" / name
    file.write_bytes(file.read_bytes()[:20_000] if rest is None else rest)
    if name == "metadata.json" and rest is None:
        file.unlink()
    with pytest.raises(DatasetError, match="is damaged|no Minari dataset"):
        run(recipe, [data], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_prompts_in_another_order(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = record(tmp_path / "data", monkeypatch)
    minari.MinariDataset(data / "data").storage.update_metadata({"prompts": ["a", "b", "c"]})
    with pytest.raises(DatasetError, match=r"\['a', 'b', 'c'\], the recipe's card the prompts"):
        run(recipe, [data], tmp_path / "run")


def test_a_full_disk_is_noticed_first(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = record(tmp_path / "data", monkeypatch)
    usage = shutil.disk_usage(tmp_path)
    frames = 20 * 7 * 4 * 64 * 64 * 3
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=frames))
    with pytest.raises(DatasetError, match="GB of disk needed under .*run, 0.01 GB free"):
        run(recipe, [data], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    run(recipe, [data], tmp_path / "run")
    # what was read before needs no room again, the checkpoints and latents do
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DatasetError, match="GB of disk needed under .*run, 0.00 GB free"):
        run(recipe, [], tmp_path / "run")


def test_seeds_of_others_do_not_decide_what_is_held_out(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = record(tmp_path, monkeypatch)
    dataset = minari.load_dataset("other/game-v0")
    dataset.storage.update_episode_metadata([{"seed": 0}] * 20)  # a reset(seed=0) each
    store = run(recipe, [path], tmp_path / "run")
    assert store.summary()["episodes"] == 20 and len(store.episodes(held_out=True)) == 1


def test_sources_of_one_name_cannot_be_told_apart(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (record(tmp_path / name, monkeypatch) for name in ("one", "other"))
    with pytest.raises(DatasetError, match="two sources are called 'game-v0'"):
        run(recipe, [one, other], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_nobody_has_learned_from_is_read_anew(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = record(tmp_path / "few", monkeypatch, episodes=10)
    enough = record(tmp_path / "enough", monkeypatch)
    with pytest.raises(DatasetError, match="held-out"):
        run(recipe, [few], tmp_path / "run")
    store = run(recipe, [enough], tmp_path / "run")
    assert store.summary()["episodes"] == 20
    (tmp_path / "run" / "vae.checkpoint.safetensors").touch()
    with pytest.raises(RecipeError, match="was read from other data"):
        run(recipe, [few], tmp_path / "run")
