"""The prompt encoder: what it refuses, what it sends, what it keeps."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from magi_world.errors import CheckpointError, ConfigError, PromptError
from magi_world.models import t5
from magi_world.text import encoder as encoder_module
from magi_world.text.encoder import T5PromptEncoder
from magi_world.text.special_tokens import NEGATIVE, SpecialTokens, TokenOptions
from tests.text.t5_folder import write_t5_folder

WIDTH = 32


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_t5_folder(tmp_path_factory.mktemp("checkpoint") / "t5-v1_1-xxl")


@pytest.fixture(scope="session")
def encoder(folder: Path) -> T5PromptEncoder:
    return T5PromptEncoder(folder, caption_channels=WIDTH)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Folders that T5 was loaded from."""
    loads: list[Path] = []

    def load(folder: Path, **arguments: object) -> object:
        loads.append(folder)
        return t5.load_t5(folder, **arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(encoder_module, "load_t5", load)
    return loads


def tokens() -> SpecialTokens:
    names = {*NEGATIVE, *TokenOptions.published().names(), *(f"DURATION_{k}" for k in range(1, 9))}
    return SpecialTokens(
        {name: torch.full((1, WIDTH), -float(i + 1)) for i, name in enumerate(sorted(names))}
    )


def test_padding_changes_nothing(encoder: T5PromptEncoder, folder: Path) -> None:
    """The published code pads to 800 tokens and masks; here a caption has its own length."""
    (alone,) = encoder.embed(["A cat sits on a mat"])
    ids = encoder.tokenizer.encode("a cat sits on a mat")
    model = t5.load_t5(folder)
    padded = torch.tensor([ids + [0] * (800 - len(ids))])
    mask = (torch.arange(800) < len(ids)).long()[None]
    with torch.no_grad():
        hidden = model(input_ids=padded, attention_mask=mask).last_hidden_state[0, : len(ids)]
    assert alone.shape == (len(ids), WIDTH)
    assert alone.dtype == torch.float32
    torch.testing.assert_close(alone, hidden, atol=2e-6, rtol=0)


def test_neighbours_and_repetition_change_nothing(encoder: T5PromptEncoder) -> None:
    first, again, other = encoder.embed(["the dog runs", "The dog  runs", "a cat"])
    assert torch.equal(first, again)
    assert torch.equal(encoder.embed(["a cat"])[0], other)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (3, "a prompt is text, got int"),
        ("", "is empty"),
        (" \n\u200b ", "is empty"),
        ("一只猫在跑", "does not know 100%"),
        ("a 一只猫在跑", "does not know 83%"),
        ("a cat " * 400, r"has \d+ tokens, at most 800"),
    ],
)
def test_what_cannot_be_used_is_refused(
    encoder: T5PromptEncoder, prompt: object, said: str
) -> None:
    with pytest.raises(PromptError, match=said):
        encoder.check(prompt)
    with pytest.raises(PromptError, match=said):
        encoder.embed(["a cat", prompt])  # type: ignore[list-item]


def test_compat_sends_what_the_published_cleaner_leaves(encoder: T5PromptEncoder) -> None:
    (erased,) = encoder.embed(["一只猫在跑"], compat="magi-1")
    assert erased.shape == (1, WIDTH)  # the end token
    (cut,) = encoder.embed(["a cat " * 400], compat="magi-1")
    assert cut.shape == (800, WIDTH)
    with pytest.raises(PromptError, match="a prompt is text"):
        encoder.check(None, "magi-1")


def test_special_tokens_stand_in_front(folder: Path) -> None:
    table = tokens()
    encoder = T5PromptEncoder(
        folder, caption_channels=WIDTH, special_tokens=table, options=TokenOptions.published()
    )
    first, last = encoder.embed(["a cat"] * 2, remaining=[5, 0])
    assert torch.equal(first[:1], table.vector("DURATION_6"))
    assert torch.equal(last[:1], table.vector("DURATION_1"))
    assert torch.equal(first[1:2], table.vector("HQ"))
    assert torch.equal(first[2:], last[2:])
    null = torch.zeros(50, WIDTH)
    assert encoder.negative(null) is null
    encoder.options = TokenOptions(negative=True)
    lead = encoder.negative(null)
    assert lead.shape == null.shape
    assert torch.equal(lead[:4], torch.cat([table.vector(n) for n in reversed(NEGATIVE)]))
    # a caption that fits without them does not fit with them
    encoder.options, encoder.max_tokens = TokenOptions.published(), 8
    length = len(encoder.tokenizer.encode("a cat"))
    encoder.max_tokens = length + 1
    with pytest.raises(PromptError, match=f"at most {length - 1} are allowed"):
        encoder.check("a cat")


def test_options_need_the_table(folder: Path) -> None:
    for options in (TokenOptions(quality="hq"), TokenOptions(negative=True)):
        with pytest.raises(ConfigError, match=r"special_tokens\.npz"):
            T5PromptEncoder(folder, caption_channels=WIDTH, options=options)


def test_a_full_cache_spares_the_model(folder: Path, tmp_path: Path, counted: list[Path]) -> None:
    def fresh() -> T5PromptEncoder:
        return T5PromptEncoder(folder, caption_channels=WIDTH, cache=tmp_path / "cache")

    (computed,) = fresh().embed(["a cat"])
    (kept,) = fresh().embed(["A  cat"])
    assert torch.equal(computed, kept)
    assert len(counted) == 1
    fresh().embed(["a dog"])
    assert len(counted) == 2


def test_a_damaged_cache_file_is_written_again(folder: Path, tmp_path: Path) -> None:
    encoder = T5PromptEncoder(folder, caption_channels=WIDTH, cache=tmp_path)
    (computed,) = encoder.embed(["a cat"])
    (path,) = tmp_path.glob("*/*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    assert torch.equal(encoder.embed(["a cat"])[0], computed)
    assert path.read_bytes() == whole


def test_other_weights_never_meet_the_same_cache(folder: Path, tmp_path: Path) -> None:
    other = write_t5_folder(tmp_path / "other")
    path = sorted(other.glob("*.bin"))[0]
    state = torch.load(path, weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in state.items()}, path)
    first = T5PromptEncoder(folder, caption_channels=WIDTH, cache=tmp_path / "cache")
    second = T5PromptEncoder(other, caption_channels=WIDTH, cache=tmp_path / "cache")
    assert not torch.equal(first.embed(["a cat"])[0], second.embed(["a cat"])[0])


@pytest.mark.parametrize("idle", ["keep", "out", "drop"])
def test_where_the_model_waits_changes_nothing(
    folder: Path, encoder: T5PromptEncoder, idle: encoder_module.Idle, counted: list[Path]
) -> None:
    waiting = T5PromptEncoder(folder, caption_channels=WIDTH, idle=idle)
    for prompt in ("a cat", "the dog", "a cat"):
        assert torch.equal(waiting.embed([prompt])[0], encoder.embed([prompt])[0])
    ours = [load for load in counted if load == folder]
    assert len(ours) >= (3 if idle == "drop" else 1)


def cut_tokenizer(folder: Path) -> None:
    path = folder / "spiece.model"
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "spiece.model").unlink(), "there is no tokenizer"),
        (cut_tokenizer, "no sentencepiece model"),
        (lambda f: (f / "config.json").unlink(), "there is no T5 configuration"),
        (lambda f: (f / "config.json").write_text("{"), "is no JSON"),
        (lambda f: (f / "config.json").write_text('{"model_type": "bert"}'), "not describe a T5"),
        (lambda f: sorted(f.glob("*.bin"))[1].unlink(), "names shards that are absent"),
        (lambda f: (f / "pytorch_model.bin.index.json").unlink(), "holds no T5 weights"),
    ],
)
def test_a_bad_folder_is_named_before_any_weights_are_read(
    tmp_path: Path, damage: Callable[[Path], object], said: str, counted: list[Path]
) -> None:
    folder = write_t5_folder(tmp_path / "t5")
    damage(folder)
    with pytest.raises(CheckpointError, match=said):
        T5PromptEncoder(folder, caption_channels=WIDTH)
    assert counted == []


def test_another_width_is_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=re.escape("d_model is 32, the model expects")):
        T5PromptEncoder(folder, caption_channels=64)
