"""Recipes: the one that ships, and what is wrong with others."""

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from magi_world.config import TextConfig
from magi_world.errors import RecipeError
from magi_world.models.dit import VideoDiT
from magi_world.models.text import check_prompt
from magi_world.models.vae import VitVAE
from magi_world.training.recipe import Recipe, available, load_recipe


@pytest.fixture(scope="module")
def doom() -> Recipe:
    return load_recipe("doom_take_cover")


def shipped_text() -> str:
    return load_recipe("doom_take_cover").path.read_text(encoding="utf-8")


STRAFE = r'^"strafe left" = \[[^]]*\]'


def swap(pattern: str, text: str) -> Callable[[str], str]:
    """Replace the first place that fits a pattern."""
    return lambda whole: re.sub(pattern, text, whole, count=1, flags=re.MULTILINE)


def test_shipped_recipes_load_by_either_name(doom: Recipe) -> None:
    assert "doom_take_cover" in available()
    for name in available():
        assert load_recipe(name).path.stem == name
    assert load_recipe("doom-take-cover") == load_recipe(doom.path) == doom


def test_the_doom_recipe_is_what_the_world_promises(doom: Recipe) -> None:
    prompts = doom.card["prompts"]
    assert prompts == ["stand still", "strafe left", "strafe right"]
    assert doom.config.chunk_frames == 4 and doom.config.fps == 35
    assert (doom.config.height, doom.config.width) == (64, 64)
    assert doom.card["horizon"] * doom.config.chunk_frames == 2100
    assert doom.card["reward_range"] == [0.0, 4.0]
    modules = {"dit": VideoDiT(doom.config.dit), "vae": VitVAE(doom.config.vae)}
    count = {part: sum(p.numel() for p in module.parameters()) for part, module in modules.items()}
    assert 2e6 <= count["dit"] <= 4e6 and 2e6 <= count["vae"] <= 3e6


def test_paraphrases_are_a_dozen_and_never_seen_ones_are_apart(doom: Recipe) -> None:
    assert doom.config.text is not None
    seen: list[str] = list(doom.card["prompts"])
    for prompt in doom.card["prompts"]:
        assert len(doom.card["paraphrases"][prompt]) >= 12
        assert doom.card["held_out_paraphrases"][prompt]
        seen += doom.card["paraphrases"][prompt] + doom.card["held_out_paraphrases"][prompt]
    assert len(set(seen)) == len(seen)
    assert isinstance(doom.config.text, TextConfig)
    for prompt in seen:
        check_prompt(prompt, doom.config.text.max_bytes)


def test_overrides_replace_values() -> None:
    recipe = load_recipe("doom_take_cover", vae={"steps": 7}, outcome={"chunks": 5, "seed": 3})
    assert recipe.vae.steps == 7 and recipe.vae.batch_size == 16
    assert (recipe.outcome.chunks, recipe.outcome.seed) == (5, 3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"vae": {"step": 7}}, r"\[vae\]: unknown \['step'\]; known are"),
        ({"vea": {"steps": 7}}, "vea"),
        ({"card": {"horizon": 7}}, "card"),
        ({"vae": {"steps": 0}}, "steps"),
        ({"vae": {"steps": "many"}}, "steps"),
        ({"vae": {"steps": 2.5}}, "steps"),
        ({"dit": {"workers": 3}}, "batch_size 4 cannot be shared by 3 workers"),
        ({"dit": {"batch_size": 0}}, "batch_size"),
        ({"dit": {"learning_rate": -1.0}}, "learning_rate"),
        ({"dit": {"caption_dropout": 1.5}}, "caption_dropout"),
        ({"dit": {"sequence": 1}}, "sequence"),
        ({"dit": {"most_kv_range": 128}}, "most_kv_range is above sequence"),
        ({"outcome": {"ema_decay": 1.0}}, "ema_decay"),
        ({"vae": {"precision": "float16"}}, "precision 'float16' is not one of"),
        ({"dit": {"objective": "gan"}}, "objective 'gan' is not one of"),
        ({"dit": {"objective": "energy", "copies": 1}}, "needs copies = 2 or more"),
        ({"dit": {"own_depth": 0}}, "own_depth"),
        ({"dit": {"objective": 3}}, "objective 3 is not a text"),
    ],
)
def test_wrong_overrides_are_named(overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe("doom_take_cover", **overrides)


@pytest.mark.parametrize("name", ["doom", "folder/absent.toml", ""])
def test_an_unknown_name_lists_what_ships(name: str) -> None:
    with pytest.raises(RecipeError, match="no recipe .*; shipped are .*doom_take_cover"):
        load_recipe(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text + "\n[more]\n", r"has the sections .*'more'"),
        (swap(r"^\[outcome\]", "[outcomes]"), "expected"),
        (lambda text: text + "\n=", "mine.toml"),
        (swap(r"^steps = .*\n", ""), r"\[vae\].*steps"),
        (swap(r"^steps = .*", 'steps = "12"'), r"\[vae\].*steps"),
        (swap("kl_weight", "kl_wait"), r"\[vae\]: unknown \['kl_wait'\]"),
        (swap("^num_layers", "num_layer"), r"\[config\]: DiTConfig: unknown keys"),
        (swap("^kv_range = .*", "kv_range = 0"), r"\[config\]: kv_range 0"),
        (swap("^name = .*", ""), r"\[card\].*name"),
        (swap("^horizon =", "horizons ="), r"\[card\].*horizon"),
        (swap("^licence", "license"), r"\[card\]: unknown \['license'\]"),
        (swap(r"^name = .*", "name = 5"), r"\[card\]: name 5 is no text"),
        (swap(r"^reward_range = .*", "reward_range = [0, inf]"), "is not finite"),
        (swap(STRAFE, '"strafe left" = "go left"'), r"paraphrases .* no section"),
        (swap(STRAFE, '"strafe lift" = []'), r"paraphrases of \['strafe lift'\]"),
        (swap(STRAFE, '"strafe left" = [3]'), "3 for 'strafe left': a prompt is"),
        (swap(STRAFE, '"strafe left" = [""]'), "the prompt is empty"),
        (swap(STRAFE, f'"strafe left" = ["{"x" * 257}"]'), "257 UTF-8 bytes"),
        (
            swap(STRAFE, '"strafe left" = ["strafe right"]'),
            "'strafe right' stands for 'strafe right' and again for 'strafe left'",
        ),
        (
            swap('^(prompts = .*"strafe right")', r'\1, "stand still"'),
            "and again for 'stand still'",
        ),
        (lambda text: "vae = 3\n" + text.replace("\n[vae]", "\n[outcome.vae]"), "vae"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(
    tmp_path: Path, change: Callable[[str], str], words: str
) -> None:
    path = tmp_path / "mine.toml"
    text = change(shipped_text())
    assert text != shipped_text()
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=words) as caught:
        load_recipe(path)
    assert "mine.toml" in str(caught.value)


def test_the_encoding_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(shipped_text(), encoding="utf-8-sig")
    assert load_recipe(path).card == load_recipe("doom_take_cover").card
    path.write_bytes(shipped_text().encode() + "# ä\n".encode("latin-1"))
    with pytest.raises(RecipeError, match="mine.toml: 'utf-8' codec"):
        load_recipe(path)


def test_a_file_may_lie_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(swap("^steps = .*", "steps = 11")(shipped_text()), encoding="utf-8")
    recipe = load_recipe(str(path))
    assert recipe.vae.steps == 11 and recipe.path == path
    assert tomllib.loads(path.read_text())["card"] == recipe.card
