"""Special tokens: which, in which order, from which table."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magi_world.errors import CheckpointError, ConfigError
from magi_world.text.special_tokens import NEGATIVE, SpecialTokens, TokenOptions

WIDTH = 4


def write_table(path: Path, **changes: object) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, object] = {
        "caption_token": rng.normal(size=(1, WIDTH)),
        "logo_token": rng.normal(size=(1, WIDTH)),
        "other_tokens": rng.normal(size=(100, WIDTH)),
    }
    np.savez(path, **{**arrays, **changes})  # type: ignore[arg-type]
    return path


def test_tokens_are_rounded_to_half_precision(tmp_path: Path) -> None:
    path = write_table(tmp_path / "special_tokens.npz")
    table = SpecialTokens.load(path, WIDTH)
    row = np.load(path)["other_tokens"][1]
    assert table.vector("HQ").dtype == torch.float32
    assert table.vector("HQ")[0].tolist() == row.astype(np.float16).astype(np.float32).tolist()
    assert table.vector("HQ")[0].tolist() != row.astype(np.float32).tolist()


def test_the_order_is_the_published_one() -> None:
    options = TokenOptions(
        quality="hq", duration="auto", style=("anime", "3d"), opening=("static",), borders=True
    )
    assert options.names(2) == (
        "STATIC_FIRST_FRAMES", "BORDERNESS", "HQ", "THREE_D_MODEL", "TWO_D_ANIME", "DURATION_3",
    )  # fmt: skip
    assert TokenOptions.published().names(0) == ("HQ", "DURATION_1")
    assert TokenOptions().names(5) == ()


@given(st.integers(0, 10**6))
def test_duration_counts_what_remains_up_to_eight(remaining: int) -> None:
    (name,) = TokenOptions(duration="auto").names(remaining)
    assert name == f"DURATION_{min(remaining + 1, 8)}"
    assert TokenOptions(duration=3).names(remaining) == ("DURATION_3",)


def test_nobody_knows_how_much_remains() -> None:
    assert TokenOptions(duration="auto").names(None) == ("DURATION_8",)


@given(tokens=st.integers(0, 30), names=st.lists(st.sampled_from(NEGATIVE), max_size=6))
def test_each_token_comes_before_what_was_there(tokens: int, names: list[str]) -> None:
    vectors = {name: torch.full((1, WIDTH), -1.0 - i) for i, name in enumerate(NEGATIVE)}
    caption = torch.arange(tokens).float()[:, None].expand(tokens, WIDTH)
    result = SpecialTokens(vectors).prepend(caption, tuple(names), 20)
    expected = [float(vectors[name][0, 0]) for name in reversed(names)] + list(range(tokens))
    assert result[:, 0].tolist() == expected[:20]


@pytest.mark.parametrize(
    "values",
    [
        {"quality": "low"},
        {"duration": 0},
        {"duration": 9},
        {"duration": True},
        {"duration": "long"},
        {"style": ("4d",)},
        {"style": "3d"},
        {"opening": ("slow",)},
    ],
)
def test_wrong_options_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        TokenOptions(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"caption_token": np.zeros((1, 5))}, "caption_token has shape"),
        ({"other_tokens": np.zeros((10, WIDTH))}, "at least 17 rows"),
        ({"logo_token": np.full((1, WIDTH), np.nan)}, "NaN"),
        ({"logo_token": np.array([[None] * WIDTH])}, "no table"),
    ],
)
def test_a_wrong_table_is_named(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    path = write_table(tmp_path / "tokens.npz", **changes)
    with pytest.raises(CheckpointError, match=said):
        SpecialTokens.load(path, WIDTH)


def test_a_damaged_or_absent_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokens.npz"
    with pytest.raises(CheckpointError, match="there is no table"):
        SpecialTokens.load(path, WIDTH)
    for content in (b"", b"PK\x03\x04 cut", b"text"):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="no table"):
            SpecialTokens.load(path, WIDTH)
    with pytest.raises(ConfigError, match="'LOUD' is not one of"):
        SpecialTokens.load(write_table(path), WIDTH).vector("LOUD")
