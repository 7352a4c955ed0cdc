# mypy: disable-error-code="assignment"
"""A world as a whole: on disk and back, pictures, captions, prompts, bad folders."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from magi_world.checkpoints.tensors import read_tensors, write_tensors
from magi_world.checkpoints.world_format import empty_bank
from magi_world.errors import CheckpointError, ConfigError, PromptError, WorldNotFound
from magi_world.world import World, load
from tests.sampling.variants import variant
from tests.tiny_world import PROMPTS, make_tiny_world, tiny_card


def frames_of(*shape: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# -------------------------------------------------------------------- disk


def test_a_round_trip(tiny_world_path: Path, tmp_path: Path) -> None:
    first = load(tiny_world_path)
    first.save(tmp_path / "copy")
    second = load(str(tmp_path / "copy"))
    assert second.name == first.name and second.card == first.card == tiny_card()
    assert second.config == first.config and second.folder == tmp_path / "copy"
    for name, module in first.modules().items():
        other = second.modules()[name].state_dict()
        assert all(torch.equal(t, other[key]) for key, t in module.state_dict().items())
        assert not second.modules()[name].training
    assert [len(clip) for clip in second.bank.latents] == [1, 3, 4]
    for file in sorted(path.name for path in tiny_world_path.iterdir()):
        if file.endswith(".safetensors"):
            one, two = read_tensors(tiny_world_path / file), read_tensors(tmp_path / "copy" / file)
            assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
            floating = {t.dtype for t in one.values() if t.is_floating_point()}
            assert floating == {torch.bfloat16}
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "bank.safetensors", "dit.safetensors", "outcome.safetensors", "text.safetensors",
        "vae.safetensors", "world.json",
    ]  # fmt: skip


def test_saving_rounds_once_and_the_weights_in_memory_stay() -> None:
    world = make_tiny_world()
    weight = world.dit.x_embedder.weight.detach().clone()
    assert not torch.equal(weight, weight.bfloat16().float())


def test_a_world_without_text_outcome_and_bank(tmp_path: Path) -> None:
    card = tiny_card()
    card["config"] |= {"text": None, "outcome": None}
    World(card).save(tmp_path / "bare")
    world = load(tmp_path / "bare")
    assert world.text is None and world.outcome is None and len(world.bank) == 0
    assert sorted(world.modules()) == ["dit", "vae"]
    with pytest.raises(PromptError, match="has no text encoder"):
        world.check_prompt("left")


@pytest.mark.parametrize("name", ["no-such-world", ".", "/does/not/exist", ""])
def test_an_unknown_world_lists_what_there_is(name: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorldNotFound, match="embedded are .*; a path must be a folder with"):
        load(name)


@pytest.fixture
def folder(tiny_world_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny world to spoil."""
    return Path(shutil.copytree(tiny_world_path, tmp_path / "world"))


@pytest.mark.parametrize("part", ["dit", "vae", "text", "outcome", "bank"])
def test_each_missing_file_is_named(folder: Path, part: str) -> None:
    (folder / f"{part}.safetensors").unlink()
    with pytest.raises(CheckpointError, match=f"no weight file .*{part}.safetensors"):
        load(folder)


@pytest.mark.parametrize("part", ["dit", "vae", "text", "outcome"])
def test_each_spoilt_part_names_tensor_and_file(folder: Path, part: str) -> None:
    path = folder / f"{part}.safetensors"
    tensors = read_tensors(path)
    name = sorted(n for n, t in tensors.items() if t.ndim == 2)[0]
    spoilt = {**tensors, name: torch.full_like(tensors[name], torch.nan)}
    write_tensors(spoilt, path, {})
    with pytest.raises(CheckpointError, match=rf"{part}.safetensors: {name} holds NaN"):
        load(folder)
    write_tensors({**tensors, name: tensors[name][:-1]}, path, {})
    with pytest.raises(CheckpointError, match=rf"{part}.safetensors: {name} has shape"):
        load(folder)


def test_a_bank_of_other_latents_is_named(folder: Path) -> None:
    path = folder / "bank.safetensors"
    tensors = read_tensors(path)
    write_tensors({**tensors, "latents": tensors["latents"][..., :4].contiguous()}, path, {})
    with pytest.raises(CheckpointError, match=r"bank.safetensors: latents .*\(16, 1, 8, 8\)"):
        load(folder)


def change_config(**sections: Any) -> Callable[[dict[str, Any]], None]:
    def change(card: dict[str, Any]) -> None:
        for name, values in sections.items():
            if isinstance(values, dict):
                card["config"][name] |= values
            else:
                card["config"][name] = values

    return change


def set_key(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda card: card.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (change_config(dit={"num_layers": 3}), CheckpointError, r"dit.safetensors: .* missing"),
        (change_config(dit={"num_layers": 1}), CheckpointError, r"dit.safetensors: .* unknown"),
        (change_config(dit={"kv_range": 3}), ConfigError, "unknown keys"),
        (change_config(sampling={"kv_range": 0}), ConfigError, "kv_range 0"),
        (change_config(height=63), ConfigError, "63x64"),
        (set_key("config", []), (ConfigError, CheckpointError), "config"),
        (set_key("prompts", "left"), CheckpointError, "prompts"),
        (set_key("prompts", []), CheckpointError, "prompts"),
        (set_key("prompts", ["left", 3]), CheckpointError, "prompts"),
        (set_key("prompts", ["left"]), CheckpointError, "action"),
        (set_key("reward_range", [1]), CheckpointError, "reward_range"),
        (set_key("reward_range", [4.0, 0.0]), CheckpointError, "reward_range"),
        (set_key("horizon", 0), CheckpointError, "horizon"),
    ],
)
def test_a_bad_card_is_named(
    folder: Path, change: Callable[[dict[str, Any]], None], error: Any, words: str
) -> None:
    card = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    change(card)
    (folder / "world.json").write_text(json.dumps(card), encoding="utf-8")
    with pytest.raises(error, match=words):
        load(folder)


def test_an_interrupted_save_is_no_new_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magi_world import world as module

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_bank", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_tiny_world().save(tmp_path / "new")
    with pytest.raises(WorldNotFound):
        load(tmp_path / "new")


# -------------------------------------------------------------------- pictures


def test_encode_and_decode_shapes(tiny_world: World) -> None:
    frames = frames_of(2, 12, 64, 64, 3)
    latents = tiny_world.encode(frames)
    assert latents.shape == (2, 16, 3, 8, 8) and latents.dtype == torch.float32
    again = tiny_world.decode(latents)
    assert again.shape == (2, 12, 64, 64, 3) and again.dtype == torch.uint8
    assert torch.equal(latents, tiny_world.encode(torch.from_numpy(frames)))


def test_latents_are_the_mean_times_the_scale(tiny_world: World) -> None:
    frames = frames_of(1, 4, 64, 64, 3)
    scaled = variant(tiny_world, scale_factor=0.5)
    one, other = tiny_world.encode(frames), scaled.encode(frames)
    torch.testing.assert_close(other, one * 0.5)
    assert torch.equal(scaled.decode(other), tiny_world.decode(one))
    pixels = torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.no_grad():
        mean = tiny_world.vae.encode_moments(pixels).chunk(2, dim=1)[0]
    torch.testing.assert_close(one, mean)


@pytest.mark.parametrize(
    "frames",
    [
        frames_of(4, 64, 64, 3),
        frames_of(1, 4, 32, 64, 3),
        frames_of(1, 4, 64, 64, 4),
        frames_of(1, 6, 64, 64, 3),
        frames_of(1, 4, 64, 64, 3).astype(np.float32),
        frames_of(1, 4, 64, 64, 3).astype(np.int64),
    ],
)
def test_other_frames_are_refused(tiny_world: World, frames: Any) -> None:
    with pytest.raises(ConfigError):
        tiny_world.encode(frames)


def test_read_only_frames_are_no_trouble(tiny_world: World) -> None:
    frames = frames_of(1, 4, 64, 64, 3)
    expected = tiny_world.encode(frames)
    frames.flags.writeable = False
    assert torch.equal(tiny_world.encode(frames), expected)


def test_latents_can_be_trained_on(tiny_world: World) -> None:
    latents = tiny_world.encode(frames_of(1, 4, 64, 64, 3))
    layer = torch.nn.Conv3d(16, 2, 1)
    layer(latents).sum().backward()
    assert layer.weight.grad is not None


# -------------------------------------------------------------------- text


def test_captions_do_not_depend_on_what_was_asked_before(tiny_world_path: Path) -> None:
    one, other = load(tiny_world_path), load(tiny_world_path)
    for prompt in [*PROMPTS, "something else"]:
        other.caption(prompt)
    for prompt in (PROMPTS[2], None, PROMPTS[0]):
        for (k, v), (k2, v2) in zip(one.caption(prompt), other.caption(prompt), strict=True):
            assert torch.equal(k, k2) and torch.equal(v, v2)


def test_the_null_caption_has_so_many_rows(tiny_world: World) -> None:
    assert tiny_world.caption(None)[0][0].shape == (4, 1, 16)
    assert tiny_world.caption("left")[0][0].shape == (5, 1, 16)


def test_memory_of_captions_is_bounded(tiny_world_path: Path) -> None:
    world = load(tiny_world_path)
    first = world.caption("0")
    assert world.caption("0") is first
    size = sum(k.nbytes + v.nbytes for k, v in first)
    world._captions.capacity = 3 * size
    for prompt in ("1", "2", "0", "3"):
        world.caption(prompt)
    assert world.caption("0") is first and len(world._captions) == 3  # "1" was used longest ago
    long = world.caption("a" * 200)  # larger than all that may be kept
    assert world.caption("a" * 200) is long and len(world._captions) == 1
    again = world.caption("0")
    assert again is not first and torch.equal(again[0][0], first[0][0])


def test_negative_tokens_are_in_the_null_caption(tiny_world_path: Path) -> None:
    plain, negative = load(tiny_world_path), load(tiny_world_path)

    class Encoder:
        def negative(self, table: torch.Tensor) -> torch.Tensor:
            return table + 1

    negative.text = Encoder()
    keys, other = plain.caption(None)[0][0], negative.caption(None)[0][0]
    assert keys.shape == other.shape and not torch.equal(keys, other)


def test_moving_a_world_forgets_captions(tiny_world_path: Path) -> None:
    world = load(tiny_world_path)
    wide = world.caption("left")[0][0]
    assert wide.dtype == torch.float32
    assert world.to().caption("left")[0][0] is wide  # which moves nothing
    with torch.no_grad():
        for parameter in world.dit.y_embedder.parameters():
            parameter.neg_()
    world.forget_captions()
    assert not torch.equal(world.caption("left")[0][0], wide)
    with torch.no_grad():
        for parameter in world.dit.y_embedder.parameters():
            parameter.neg_()
    world.to(dtype="bfloat16")
    assert world.dtype == torch.bfloat16 and world.caption("left")[0][0].dtype == torch.bfloat16
    world.to(dtype="float32")
    assert torch.equal(world.caption("left")[0][0], wide)  # stored weights are bfloat16 anyway


@pytest.mark.parametrize("dtype", ["float16", "bf16", torch.bfloat16])
def test_other_dtypes_are_refused(tiny_world_path: Path, dtype: Any) -> None:
    with pytest.raises(ConfigError, match="is not one of .*bfloat16.*float32"):
        load(tiny_world_path, dtype=dtype)


@pytest.mark.parametrize("device", ["nowhere", "cuda:77"])
def test_a_device_that_is_not_there_is_named(tiny_world_path: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}'"):
        load(tiny_world_path, device=device)


# -------------------------------------------------------------------- heads


def test_signals_come_by_name() -> None:
    card = copy.deepcopy(tiny_card())
    card["config"]["outcome"]["signals"] = ["damage", "ammo"]
    world = World(card, bank=empty_bank())
    chunk = world.rollout(3, seeds=range(3)).reset(prompt=PROMPTS[0])
    assert list(chunk.signals) == ["damage", "ammo"]
    damage: Tensor = chunk.signals["damage"]
    assert damage.shape == (3,) and damage.dtype == torch.float32
