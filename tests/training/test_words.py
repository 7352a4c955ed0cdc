"""More wordings for a trained world: what patterns stand for, what is learned, what stays."""

import io
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from magi_world.errors import ConfigError, RecipeError
from magi_world.players import chunk_prompts
from magi_world.training.recipe import Recipe, WordsSettings, load_recipe
from magi_world.training.words import MEASURED, expand, train_words
from magi_world.training.words_stage import WordsStage
from magi_world.world import World, load
from tests.training.toy import RECIPE, tensors_of

WORDS = """
[card.held_out_paraphrases]
"left" = ["leftwards"]

[words]
steps = 4
batch_size = 3
wordings = 2
checkpoint_minutes = 0.0

[words.patterns]
"rest" = ["{stay,remain}{, here}"]
"left" = ["{go,move} left{,!}"]
"""


def words_recipe(folder: Path, edit: Callable[[str], str] = lambda text: text) -> Recipe:
    path = folder / "toy.toml"
    path.write_text(edit(RECIPE + WORDS), encoding="utf-8")
    return load_recipe(path)


def teach(recipe: Recipe, world: Path, out: Path, **keywords: Any) -> World:
    return train_words(recipe, world, out, console=Console(file=io.StringIO()), **keywords)


# -------------------------------------------------------------------- wordings


def test_patterns_stand_for_wordings_each_once(tmp_path: Path) -> None:
    recipe = words_recipe(tmp_path)
    assert recipe.words is not None and recipe.words.wordings == 2
    assert expand(recipe) == {
        "rest": ["rest", "wait", "stay", "stay here", "remain", "remain here"],
        "left": ["left", "go left", "to the left", "go left!", "move left", "move left!"],
        "right": ["right"],
    }


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("{go,move} left{,!}", "{go,move left", "not closed"),
        ("{go,move} left{,!}", "{left,right}", "'right' stands for 'left' and again"),
        ("{go,move} left{,!}", "left{wards,}", "'leftwards' stands for 'left, held out'"),
        ("{go,move} left{,!}", "left{\\u0007,}", "printable"),
        ('"{go,move} left{,!}"', "5", "5 for 'left' is no text"),
        ('"left" = ["{go,move} left{,!}"]', '"up" = ["upwards"]', "none of the prompts"),
        ("wordings = 2", "wordings = 0", "wordings 0"),
        ("wordings = 2", "words = 2", r"unknown \['words'\]"),
    ],
)
def test_wordings_that_cannot_be_meant_are_refused(
    tmp_path: Path, old: str, new: str, words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        expand(words_recipe(tmp_path, lambda text: text.replace(old, new)))


def test_a_recipe_without_wordings_says_so(recipe: Recipe) -> None:
    assert recipe.words is None
    with pytest.raises(RecipeError, match=r"\[words.patterns\]"):
        expand(recipe)
    with pytest.raises(RecipeError, match="overrides"):
        load_recipe(recipe.path, words={"steps": 3})


def test_dooms_wordings_leave_the_held_out_ones_and_their_words_out() -> None:
    recipe = load_recipe("doom_take_cover")
    wordings = expand(recipe)
    assert all(len(texts) > 400 for texts in wordings.values())
    mirrored = [text.replace("left", "right") for text in wordings["strafe left"]]
    assert mirrored == wordings["strafe right"]
    words = {word for texts in wordings.values() for text in texts for word in text.split()}
    assert not words & {"walk", "jump", "now!", "now", "anywhere"}


# -------------------------------------------------------------------- the stage


@pytest.fixture
def stage(trained: Path, tmp_path: Path) -> WordsStage:
    recipe = words_recipe(tmp_path)
    assert recipe.words is not None
    return WordsStage(load(trained / "world"), recipe.words, expand(recipe))


def test_a_prompt_has_no_error_and_another_prompt_one_of_about_one(stage: WordsStage) -> None:
    prompts = chunk_prompts(stage.world.card)
    assert stage.error({prompt: [prompt] for prompt in prompts}) == 0.0
    swapped = dict(zip(prompts, [[other] for other in prompts[1:] + prompts[:1]], strict=True))
    assert 0.6 < stage.error(swapped) < 1.6
    assert stage.error({**swapped, "rest": ["rest"]}) < stage.error(swapped)


def test_only_the_text_encoder_learns(stage: WordsStage) -> None:
    before = stage.teacher.state_dict()
    loss, _ = stage.loss(torch.Generator().manual_seed(0))
    loss.backward()
    assert loss > 0
    assert all(p.grad is not None for p in stage.module.parameters())
    assert all(p.grad is None for p in stage.world.dit.parameters())
    optimizer = torch.optim.SGD(stage.module.parameters(), lr=1.0)
    optimizer.step()
    assert all(torch.equal(before[k], v) for k, v in stage.teacher.state_dict().items())
    assert any(not torch.equal(before[k], v) for k, v in stage.module.state_dict().items())


def test_prompts_without_wordings_do_not_count(stage: WordsStage) -> None:
    some = stage.error({"left": ["go left"]})
    assert some == stage.error({"left": ["go left"], "rest": []})
    alone = stage.error({"left": ["go left"], "rest": ["rest"], "right": ["right"]})
    assert 1.5 * alone < some  # two of three prompts have no error


def test_every_chunk_is_told_a_wording_of_its_own_prompt(stage: WordsStage) -> None:
    texts, count = stage._draw(stage.wordings, torch.Generator().manual_seed(0))
    prompts = chunk_prompts(stage.world.card)
    assert count == 2 and len(texts) == count * len(prompts)
    for index, text in enumerate(texts):
        assert text in stage.wordings[prompts[index // count]]


def test_players_are_told_wordings_of_their_own(tmp_path: Path) -> None:
    world = load("pong-duel")
    settings = WordsSettings(steps=1, batch_size=2, wordings=3)
    wordings = {prompt: [prompt, f"please {prompt}"] for prompt in world.card["prompts"]}
    stage = WordsStage(world, settings, wordings)
    texts, count = stage._draw(wordings, torch.Generator().manual_seed(0))
    assert len(texts) == 9 * count
    for index, text in enumerate(texts):
        assert text.replace("please ", "") == chunk_prompts(world.card)[index // count]
    assert len(set(texts)) > 9


def test_a_world_that_cannot_learn_words_says_why(trained: Path, tmp_path: Path) -> None:
    recipe = words_recipe(tmp_path)
    assert recipe.words is not None
    world = load(trained / "world")
    world.bank = replace(world.bank, latents=(), prompts=(), num_openings=0)
    with pytest.raises(ConfigError, match="no clips"):
        WordsStage(world, recipe.words, expand(recipe))
    world.text = None
    with pytest.raises(ConfigError, match="no text encoder"):
        WordsStage(world, recipe.words, expand(recipe))


# -------------------------------------------------------------------- a whole run


def test_a_run_changes_the_text_encoder_alone_and_tells_the_errors(
    trained: Path, tmp_path: Path
) -> None:
    recipe = words_recipe(tmp_path)
    measured = load(trained / "world")
    measured.card["evaluation"] = {"auc": 1.0}
    measured.save(tmp_path / "measured")
    (tmp_path / "measured" / "agent").mkdir()
    (tmp_path / "measured" / "agent" / "agent.json").write_text("{}")
    world = teach(recipe, tmp_path / "measured", tmp_path / "out")
    before, after = tensors_of(trained / "world"), tensors_of(tmp_path / "out" / "world")
    changed = {name for name, tensor in after.items() if not torch.equal(before[name], tensor)}
    assert before.keys() == after.keys()
    assert changed and all(name.startswith("text.safetensors") for name in changed)
    assert not set(MEASURED) & set(world.card)
    told = world.card["training"]["wording_error"]
    assert set(told) == {"prompts", "learned", "held_out"}
    assert set(told["learned"]) == {"before", "now"} and told["prompts"]["before"] == 0
    assert world.card["training"]["wordings"] == {"rest": 6, "left": 6, "right": 1}
    assert world.card["held_out_paraphrases"] == {"left": ["leftwards"]}
    assert (tmp_path / "out" / "world" / "agent" / "agent.json").is_file()


def test_a_run_that_was_stopped_goes_on_bit_for_bit(trained: Path, tmp_path: Path) -> None:
    recipe = words_recipe(tmp_path)
    assert recipe.words is not None
    half = replace(recipe, words=replace(recipe.words, steps=2, cooldown=0.0))
    whole = replace(recipe, words=replace(recipe.words, cooldown=0.0))
    teach(whole, trained / "world", tmp_path / "once")
    teach(half, trained / "world", tmp_path / "twice")
    with pytest.raises(RecipeError, match="holds a run already"):
        teach(whole, trained / "world", tmp_path / "twice")
    with pytest.raises(RecipeError, match="other world$"):
        teach(whole, tmp_path / "once" / "world", tmp_path / "twice", resume=True)
    other = replace(whole, patterns={"left": ["leave"]})
    with pytest.raises(RecipeError, match="other wordings$"):
        teach(other, trained / "world", tmp_path / "twice", resume=True)
    assert whole.words is not None
    faster = replace(whole, words=replace(whole.words, learning_rate=1.0))
    with pytest.raises(RecipeError, match="other settings$"):
        teach(faster, trained / "world", tmp_path / "twice", resume=True)
    teach(whole, trained / "world", tmp_path / "twice", resume=True)
    one, two = (tensors_of(tmp_path / name / "world") for name in ("once", "twice"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_learning_brings_wordings_to_their_prompts(trained: Path, tmp_path: Path) -> None:
    recipe = words_recipe(tmp_path)
    assert recipe.words is not None
    longer = replace(recipe.words, steps=120, learning_rate=1e-2, ema_decay=0.9)
    world = teach(replace(recipe, words=longer), trained / "world", tmp_path / "out")
    error = world.card["training"]["wording_error"]["learned"]
    assert error["now"] < 0.5 * error["before"], error


def test_neither_the_world_itself_nor_another_training_is_written_over(
    trained: Path, tmp_path: Path
) -> None:
    recipe = words_recipe(tmp_path)
    before = (trained / "world" / "world.json").read_bytes()
    shutil.copytree(trained / "world", tmp_path / "copy")
    for resume in (False, True):
        with pytest.raises(RecipeError, match="holds the world that is to learn"):
            teach(recipe, trained / "world", trained, resume=resume)
        with pytest.raises(RecipeError, match="training of another kind"):
            teach(recipe, tmp_path / "copy", trained, resume=resume)
    assert (trained / "world" / "world.json").read_bytes() == before


def test_a_recipe_of_other_prompts_is_refused(trained: Path, tmp_path: Path) -> None:
    recipe = words_recipe(tmp_path, lambda text: text.replace('"rest"', '"stop"'))
    with pytest.raises(RecipeError, match=r"has the prompts .*stop.*rest"):
        teach(recipe, trained / "world", tmp_path / "out")
