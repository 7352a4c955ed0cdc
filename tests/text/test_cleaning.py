"""The sane cleaner keeps what was written; on ordinary sentences it agrees with the published."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magi_world.errors import MissingPackage
from magi_world.text.cleaning import clean, clean_published

ORDINARY = [
    "Good Boy",
    "A calico cat stretches on a sunlit windowsill, then looks at the camera.",
    "The camera slowly pans left; waves break over black rocks at dusk",
    "An old man’s hands knead dough – flour in the air – warm light",
    "“Welcome home,” says the sign over the door",
    "a 3d render of a red car,   driving\nthrough fog",
]
SCRIPTS = [
    "一只猫在跑",
    "走る猫、夕焼け",
    "кот бежит",
    "قطة تركض",
    "बिल्ली दौड़ती है",
    "고양이가 달린다",
]  # noqa: RUF001


@pytest.mark.parametrize("prompt", ORDINARY)
def test_ordinary_sentences_come_out_as_published(prompt: str) -> None:
    assert clean(prompt) == clean_published(prompt)


@pytest.mark.parametrize("prompt", SCRIPTS)
def test_every_script_stays(prompt: str) -> None:
    assert clean(prompt) == prompt


def test_the_published_cleaner_erases_what_the_sane_one_keeps() -> None:
    assert clean_published("一只猫在跑") == ""
    for prompt in ("robot x9y walks", "a sign that says 123456", "free shipping banner"):
        assert clean(prompt) == prompt
        assert clean_published(prompt) != prompt


def test_invisible_characters_and_quotes_around_everything_go() -> None:
    assert clean("\ufeff 'A\u00a0cat\u200b' \x00") == "a cat"
    assert clean("'a' and 'b'") == "'a' and 'b'"
    assert clean("a family \U0001f468\u200d\U0001f469\u200d\U0001f467") == (
        "a family \U0001f468\u200d\U0001f469\u200d\U0001f467"
    )


@given(st.text())
def test_cleaning_is_stable_and_plain(prompt: str) -> None:
    once = clean(prompt)
    assert once == " ".join(once.split())
    assert not any(c in once for c in "\t\n\r\x00“”‘’—")  # noqa: RUF001
    if prompt.isascii():
        assert [c for c in once if c.isalnum()] == [c for c in prompt.lower() if c.isalnum()]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(MissingPackage, match=r"'ftfy': pip install 'magi-world\[magi1\]'"):
        clean_published("a cat")
