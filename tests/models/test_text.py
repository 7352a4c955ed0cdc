"""Prompts: what is refused, and that encoding them together or alone is the same."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magi_world.config import TextConfig
from magi_world.errors import PromptError
from magi_world.models.text import TextEncoder, check_prompt, tokenize

CONFIG = TextConfig(d_model=16, d_ff=24, d_kv=8, num_heads=2, num_layers=2)
PRINTABLE = st.text(min_size=1, max_size=60).filter(str.isprintable)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TextEncoder(CONFIG).eval().requires_grad_(False)


@given(st.text(max_size=80))
def test_a_prompt_is_printable_text_of_at_most_so_many_bytes(prompt: str) -> None:
    size = len(prompt.encode(errors="surrogatepass"))
    fine = prompt.isprintable() and 0 < size <= 60  # surrogates are not printable
    if fine:
        assert check_prompt(prompt, 60) == prompt
    else:
        with pytest.raises(PromptError):
            check_prompt(prompt, 60)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (3, "a prompt is text, got int: 3"),
        (None, "a prompt is text, got NoneType"),
        (b"left", "a prompt is text, got bytes"),
        (["left"], "a prompt is text, got list"),
        ("", "the prompt is empty"),
        ("go\nleft", r"'go\\nleft' has characters that are not printable"),
        ("\x00", "not printable"),
        ("\ud800", "not printable"),
        ("x" * 257, "has 257 UTF-8 bytes, at most 256"),
        ("é" * 129, "has 258 UTF-8 bytes, at most 256"),
    ],
)
def test_each_refusal_says_why(prompt: object, words: str) -> None:
    with pytest.raises(PromptError, match=words):
        check_prompt(prompt, 256)


def test_the_longest_prompt_is_not_cut(encoder: TextEncoder) -> None:
    longest = "é" * 128
    assert check_prompt(longest, 256) == longest
    tokens, lengths = encoder([longest])
    assert lengths == [257] and tokens.shape == (257, 16)
    other, _ = encoder([longest[:-1] + "è"])  # the last byte still counts
    assert not torch.allclose(tokens, other)


@given(PRINTABLE)
def test_tokens_are_bytes_and_an_end(prompt: str) -> None:
    ids = tokenize(prompt)
    assert bytes(token - 3 for token in ids[:-1]).decode() == prompt
    assert ids[-1] == 1 and all(3 <= token < 259 for token in ids[:-1])


@given(st.lists(PRINTABLE, min_size=1, max_size=4))
def test_packed_prompts_do_not_see_each_other(encoder: TextEncoder, prompts: list[str]) -> None:
    packed, lengths = encoder(prompts)
    assert lengths == [len(prompt.encode()) + 1 for prompt in prompts]
    for prompt, tokens in zip(prompts, packed.split(lengths), strict=True):
        alone, _ = encoder([prompt])
        torch.testing.assert_close(tokens, alone, rtol=1e-4, atol=1e-5)


def test_order_matters(encoder: TextEncoder) -> None:
    one, _ = encoder(["left right"])
    two, _ = encoder(["right left"])
    assert (one[-1] - two[-1]).abs().max() > 1e-3  # the same bytes in another order


def test_buffers_stay_out_of_the_file(encoder: TextEncoder) -> None:
    assert "frequencies" not in encoder.state_dict()
