# mypy: disable-error-code="attr-defined"
"""A world's folder: the bank and the card."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_world.checkpoints.tensors import read_tensors, write_tensors
from magi_world.checkpoints.world_format import (
    Bank,
    empty_bank,
    read_bank,
    read_card,
    write_bank,
    write_card,
)
from magi_world.errors import CheckpointError, ResetOptionError
from tests.tiny_world import PROMPTS, tiny_card

Tensors = dict[str, Tensor]
SHAPE = (16, 1, 8, 8)


def make_bank() -> Bank:
    latents = torch.randn(6, 16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = latents.bfloat16().float()
    texts = tuple(PROMPTS[i % 3] for i in range(6))
    return Bank(tuple(latents.split([1, 3, 2])), (texts[:1], texts[1:4], texts[4:]), 1)


def test_a_bank_round_trip_is_exact(tmp_path: Path) -> None:
    bank = make_bank()
    write_bank(bank, PROMPTS, tmp_path / "bank.safetensors")
    again = read_bank(tmp_path / "bank.safetensors", PROMPTS, SHAPE)
    assert len(again) == 3 and again.num_openings == 1
    assert again.prompts == bank.prompts
    for index in range(3):
        latents, prompts = again.clip(index)
        assert latents.dtype == torch.float32
        assert torch.equal(latents, bank.latents[index]) and prompts == bank.prompts[index]


def test_an_empty_bank_round_trip(tmp_path: Path) -> None:
    write_bank(empty_bank(), PROMPTS, tmp_path / "bank.safetensors")
    again = read_bank(tmp_path / "bank.safetensors", PROMPTS, SHAPE)
    assert len(again) == 0 and again.num_openings == 0


@pytest.mark.parametrize("index", [-1, 3])
def test_a_clip_that_is_not_there(index: int) -> None:
    with pytest.raises(ResetOptionError, match=f"clip {index}.*0…2"):
        make_bank().clip(index)


def drop(t: Tensors) -> None:
    del t["actions"]


def add(t: Tensors) -> None:
    t["more"] = torch.zeros(1)


def lose_a_length(t: Tensors) -> None:
    t["lengths"] = t["lengths"][:-1]


def lose_an_action(t: Tensors) -> None:
    t["actions"] = t["actions"][:-1]


def strange_action(t: Tensors) -> None:
    t["actions"][2] = 3


def negative_action(t: Tensors) -> None:
    t["actions"][2] = -1


def empty_clip(t: Tensors) -> None:
    t["lengths"] = torch.tensor([1, 0, 5])


def nan(t: Tensors) -> None:
    t["latents"][3, 0, 0, 0, 0] = torch.nan


def narrow(t: Tensors) -> None:
    t["latents"] = t["latents"][..., :4].contiguous()


def openings(t: Tensors) -> None:
    t["num_openings"] = torch.tensor(4)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (drop, "actions"),
        (add, "more"),
        (lose_a_length, "lengths"),
        (lose_an_action, "actions"),
        (strange_action, "action.*0…2"),
        (negative_action, "action.*0…2"),
        (empty_clip, "lengths"),
        (nan, "latents holds NaN or infinity"),
        (openings, "num_openings"),
        (narrow, r"latents \(6, 16, 1, 8, 4\), expected \(16, 1, 8, 8\)"),
    ],
)
def test_a_spoilt_bank_is_named(
    tmp_path: Path, spoil: Callable[[Tensors], None], words: str
) -> None:
    path = tmp_path / "bank.safetensors"
    write_bank(make_bank(), PROMPTS, path)
    spoilt = read_tensors(path)
    spoil(spoilt)
    write_tensors(spoilt, path, {})
    with pytest.raises(CheckpointError, match=words) as caught:
        read_bank(path, PROMPTS, SHAPE)
    assert str(path) in str(caught.value)


def test_a_card_round_trip_keeps_every_character(tmp_path: Path) -> None:
    card = {**tiny_card(), "description": "… × 日本 \u2028"}
    write_card(tmp_path, card)
    assert read_card(tmp_path) == card
    assert (tmp_path / "world.json").read_bytes().endswith(b"}\n")


def test_an_interrupted_card_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_card(tmp_path, tiny_card())

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_card(tmp_path, {**tiny_card(), "horizon": 3})
    monkeypatch.undo()
    assert read_card(tmp_path) == tiny_card()
    write_card(tmp_path, {**tiny_card(), "horizon": 3})
    assert read_card(tmp_path)["horizon"] == 3
    assert os.listdir(tmp_path) == ["world.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is no JSON"),
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[]", "is no JSON object"),
        (b"3", "is no JSON object"),
        (b"{}", r"lacks \['name', 'game', 'prompts'"),
    ],
)
def test_a_spoilt_card_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "world.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_card(tmp_path)
    assert "world.json" in str(caught.value)


@pytest.mark.parametrize("key", ["name", "prompts", "horizon", "reward_range", "config"])
def test_each_required_key_is_named(tmp_path: Path, key: str) -> None:
    card = tiny_card()
    del card[key]
    (tmp_path / "world.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=rf"lacks \['{key}'\]"):
        read_card(tmp_path)


def test_a_folder_without_a_card_is_no_world(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no world"):
        read_card(tmp_path)
