"""MAGI-1 checkpoints: loaded from both layouts, moved between them, refused when damaged."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import magi_world
from magi_world.checkpoints import hub
from magi_world.checkpoints.magi1_format import is_magi1
from magi_world.checkpoints.random_presets import random_preset
from magi_world.errors import CheckpointError, ConfigError, MissingPackage, WorldNotFound
from magi_world.models.fp8 import Fp8Linear
from magi_world.world import World
from tests.checkpoints.official import UNCACHED, edit_config, write_official

KINDS = ["tiny", "tiny-distill", "tiny-distill-fp8"]
PROMPT = "A cat walks along the beach."


def load(folder: Path, **options: Any) -> World:
    parts = options.pop("parts", UNCACHED)
    return magi_world.load(folder, parts=parts, **options)


def same(one: World, other: World) -> bool:
    states = [{**w.dit.state_dict(), **w.vae.state_dict()} for w in (one, other)]
    return states[0].keys() == states[1].keys() and all(
        states[0][k].dtype == states[1][k].dtype and torch.equal(
            states[0][k].view(torch.uint8), states[1][k].view(torch.uint8)
        )
        for k in states[0]
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_becomes_a_world(kind: str, official: dict[str, Path]) -> None:
    world = load(official[kind])
    config, magi1 = world.config, world.config.magi1
    assert magi1 is not None
    assert (magi1.distill, magi1.fp8_quant) == ("distill" in kind, "fp8" in kind)
    assert (magi1.num_steps, magi1.window, magi1.cfg_number) == (8, 4, 1 if magi1.distill else 3)
    assert (config.height, config.width, config.fps) == (64, 64, 24)
    assert config.sampling.clean_null_caption and config.sampling.kv_range == 5
    assert config.latent_shape == (16, 6, 8, 8)
    assert world.name == kind and len(world.bank) == 0 and world.card["prompts"] == []
    assert world.device.type == "cpu" and world.dtype == torch.float32
    quantised = [n for n, m in world.dit.named_modules() if isinstance(m, Fp8Linear)]
    assert len(quantised) == (14 if magi1.fp8_quant else 0)

    world.check_prompt(PROMPT)
    keys, values = world.caption(PROMPT)[0]
    assert keys.shape == values.shape and keys.shape[1:] == (2, 16)
    frames = world.decode(torch.zeros(1, *config.latent_shape))
    assert frames.shape == (1, 24, 64, 64, 3) and frames.dtype == torch.uint8
    assert world.encode(frames).shape == (1, *config.latent_shape)
    # the published code loses three frames of four latent ones
    four = torch.zeros(1, 16, 4, 8, 8)
    assert world.decode(four).shape[1] == 16
    assert world.decode(four, compat="magi-1").shape[1] == 13


@pytest.mark.parametrize("layout", ["world", "magi-1"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_round_trip_is_exact(
    kind: str, layout: Any, official: dict[str, Path], tmp_path: Path
) -> None:
    world = load(official[kind])
    target = tmp_path / kind
    world.save(target, layout=layout)
    again = load(target)
    assert same(world, again)
    assert again.config == world.config and again.card == world.card
    for mine, other in zip(world.caption(PROMPT), again.caption(PROMPT), strict=True):
        assert torch.equal(mine[0], other[0]) and torch.equal(mine[1], other[1])
    assert not list(target.rglob("*.partial"))
    if layout == "magi-1":
        files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file())
                 for f in (target, official[kind])]  # fmt: skip
        assert files[0] == files[1]
        assert json.loads((target / "config.json").read_text()) == json.loads(
            (official[kind] / "config.json").read_text()
        )
        with pytest.raises(CheckpointError, match="holds a checkpoint already"):
            world.save(target, layout="magi-1")


def test_weights_keep_their_precision(tmp_path: Path, official: dict[str, Path]) -> None:
    world = load(official["tiny"])
    with torch.no_grad():
        world.dit.rope.bands.add_(1e-5)  # no bfloat16 any more
    world.save(tmp_path / "own")
    assert same(load(tmp_path / "own"), world)
    stored = load_file(tmp_path / "own" / "dit.safetensors")
    assert stored.pop("rope.bands").dtype == torch.float32
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_other_worlds_have_no_published_layout(tiny_world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only a MAGI-1 checkpoint"):
        tiny_world.save(tmp_path / "a", layout="magi-1")
    with pytest.raises(ConfigError, match="layout 'other' is not one of"):
        tiny_world.save(tmp_path / "a", layout="other")  # type: ignore[arg-type]


def test_bfloat16_keeps_the_islands_of_the_recipe(official: dict[str, Path]) -> None:
    world = load(official["tiny-distill-fp8"], dtype="bfloat16")
    moved = load(official["tiny-distill-fp8"]).to(dtype="bfloat16")
    assert same(world, moved) and world.dtype == torch.bfloat16
    dtypes = {name: t.dtype for name, t in world.dit.state_dict().items()}
    assert dtypes["x_embedder.weight"] == torch.float32
    layer = "videodit_blocks.layers.1.mlp.linear_fc1."
    assert dtypes[layer + "weight"] == torch.float8_e4m3fn
    assert dtypes[layer + "input_scale"] == torch.float32


def test_resized_worlds_share_their_weights(official: dict[str, Path]) -> None:
    world = load(official["tiny"])
    wide = world.resized(48, 80)
    assert wide.config.latent_shape == (16, 6, 6, 10) and wide.dit is world.dit
    assert (world.config.height, wide.config.height) == (64, 48)
    assert wide.caption(PROMPT) is world.caption(PROMPT)
    assert wide.decode(torch.zeros(1, 16, 1, 6, 10)).shape == (1, 4, 48, 80, 3)
    assert world.resized(64, 64) is world
    with pytest.raises(ConfigError, match="40x64 are not a multiple of 16"):
        world.resized(40, 64)
    wide.to(dtype="bfloat16")
    assert world.dtype == torch.bfloat16
    assert world.caption(PROMPT)[0][0].dtype == torch.bfloat16


def test_compressed_shards_load(tmp_path: Path, official: dict[str, Path]) -> None:
    folder = write_official(tmp_path / "z", shard_bytes=200_000, compress=True)
    assert len(list(folder.glob("inference_weight/*.safetensors.zst"))) > 1
    assert same(load(folder), load(official["tiny"]))


def test_a_random_checkpoint_is_the_same_for_the_same_seed(
    tmp_path: Path, official: dict[str, Path]
) -> None:
    other = load(write_official(tmp_path / "b", seed=1))
    assert same(load(write_official(tmp_path / "a")), load(official["tiny"]))
    assert not same(other, load(official["tiny"]))


def test_the_parts_may_lie_beside_the_folder(official: dict[str, Path], tmp_path: Path) -> None:
    """As in the published repository: ckpt/magi/4.5B_base, ckpt/vae, ckpt/t5."""
    place = tmp_path / "ckpt" / "magi" / "4.5B_base"
    shutil.copytree(official["tiny"], place)
    for name in ("vae", "t5"):
        shutil.move(place / name, tmp_path / "ckpt" / name)
    shutil.move(place / "special_tokens.npz", tmp_path / "ckpt")
    edit_config(place, "runtime_config", vae_pretrained="./downloads/vae", load="./downloads/x")
    world = load(place)
    assert same(world, load(official["tiny"])) and world.name == "4.5B_base"
    assert world.special_tokens == tmp_path / "ckpt" / "special_tokens.npz"


def test_a_configuration_file_names_everything(official: dict[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "4.5B_base_config.json"
    shutil.copy(official["tiny"] / "config.json", file)
    (tmp_path / "config.json").write_text(file.read_text())
    place = official["tiny"]
    edit_config(
        tmp_path, "runtime_config", load=str(place), vae_pretrained=str(place / "vae"),
        t5_pretrained=str(place / "t5"), num_steps=16,
    )  # fmt: skip
    world = load(tmp_path / "config.json")
    assert same(world, load(place))
    assert world.config.magi1 is not None and world.config.magi1.num_steps == 16
    # the same folder with another file
    world = load(place, parts=replace(UNCACHED, config=tmp_path / "config.json"))
    assert world.config.magi1 is not None and world.config.magi1.num_steps == 16


def test_a_checkpoint_without_a_text_encoder(broken: Path) -> None:
    edit_config(broken, "runtime_config", t5_pretrained="")
    world = load(broken)
    assert world.text is None and world.config.text is None
    assert len(world.caption(None)) == 4
    with pytest.raises(magi_world.errors.PromptError, match="has no text encoder"):
        world.check_prompt(PROMPT)


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


DIT = "inference_weight/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
FC1 = "videodit_blocks.layers.1.mlp.linear_fc1.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / DIT).write_bytes((f / DIT).read_bytes()[:-9]), r"model\.safetensors has"),
        (lambda f: (f / DIT).unlink(), "holds no weights: neither model.safetensors"),
        (lambda f: shutil.rmtree(f / "inference_weight"), "there is no folder .*inference_weight"),
        (lambda f: os.rename(f / "inference_weight", f / "inference_weight.distill"),
         "distill False .* ask for; there is inference_weight.distill"),
        (lambda f: rewrite(f / DIT, lambda t: t.pop(FC1)), f"1 tensors .* missing: {FC1}"),
        (lambda f: rewrite(f / DIT, lambda t: t.update(x=torch.zeros(1))), "1 tensors are unknown"),
        (lambda f: rewrite(f / DIT, lambda t: t[FC1].fill_(torch.nan)), f"{FC1} holds NaN"),
        (lambda f: rewrite(f / DIT, lambda t: t.update({FC1: t[FC1].to(torch.float8_e4m3fn)})),
         "holds 1 FP8 linears, fp8_quant is False"),
        (lambda f: edit_config(f, "model_config", ffn_hidden_size=64), "has shape"),
        (lambda f: edit_config(f, "model_config", num_layers=5), "are missing"),
        (lambda f: (f / VAE).write_bytes(b"noise"), "diffusion_pytorch_model.safetensors is trunc"),
        (lambda f: shutil.rmtree(f / "vae"), "there is no VAE; looked in"),
        (lambda f: (f / "vae" / "config.json").write_text("{}"), "has no ddconfig"),
        (lambda f: (f / "vae" / "config.json").write_text('{"ddconfig": {}, "model_type": "v"}'),
         "of type 'v'; only 'ViTVAE'"),
        (lambda f: shutil.rmtree(f / "t5"), "there is no T5 encoder; looked in"),
        (lambda f: (f / "t5" / "t5-v1_1-xxl" / "spiece.model").unlink(), "there is no tokenizer"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda f: (f / "config.json").unlink(), "one configuration file .* it holds none"),
        (lambda f: shutil.copy(f / "config.json", f / "b.json"), "several: b.json, config.json"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_one_clear_error(
    damage: Callable[[Path], object], words: str, broken: Path
) -> None:
    damage(broken)
    with pytest.raises(CheckpointError, match=words):
        load(broken)


@pytest.mark.parametrize(
    ("section", "changes", "words"),
    [
        ("runtime_config", {"cfg_number": 1}, "config.json: cfg_number 1 contradicts"),
        ("runtime_config", {"video_size_h": 40}, "40x64 pixels"),
        ("runtime_config", {"temporal_downsample_factor": 8}, "is not the patch_length 4"),
        ("model_config", {"caption_channels": 48}, "text encoder is 32 wide, the DiT expects 48"),
    ],
)
def test_a_contradictory_configuration_is_one_clear_error(
    section: str, changes: dict[str, Any], words: str, broken: Path
) -> None:
    edit_config(broken, section, **changes)
    with pytest.raises(ConfigError, match=words):
        load(broken)


def test_fp8_is_asked_for_but_absent(official: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "a"
    shutil.copytree(official["tiny-distill"], folder)
    os.rename(folder / "inference_weight.distill", folder / "inference_weight.fp8.distill")
    edit_config(folder, "engine_config", fp8_quant=True)
    with pytest.raises(CheckpointError, match="holds no FP8 linears, fp8_quant is True"):
        load(folder)


def test_a_saved_checkpoint_without_its_text_encoder(
    official: dict[str, Path], tmp_path: Path
) -> None:
    load(official["tiny"]).save(tmp_path)
    shutil.rmtree(tmp_path / "t5")
    with pytest.raises(CheckpointError, match="there is no text encoder"):
        load(tmp_path)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"other": 1}')
    assert not is_magi1(tmp_path) and not is_magi1(tmp_path / "absent")
    with pytest.raises(WorldNotFound, match="published layout"):
        magi_world.load(tmp_path)


@pytest.mark.parametrize(
    ("preset", "parameters", "tensors"),
    [
        ("magi1-4.5b", 4_459_898_128, 898),
        ("magi1-24b", 23_899_281_936, 1262),
        ("magi1-24b-distill-fp8", 23_899_281_936, 1262 + 46 * 5 * 2 + 46 * 2 * 3),
    ],
)
def test_the_published_sizes(preset: str, parameters: int, tensors: int) -> None:
    summary = random_preset(preset).summary()
    assert (summary["parameters"], summary["tensors"]) == (parameters, tensors)
    assert summary["vae_parameters"] == 613_755_239


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub:org/name", ("org/name", "", None)),
        ("hub:org/name@v1", ("org/name", "", "v1")),
        ("hub:org/name/ckpt/magi/4.5B_base", ("org/name", "ckpt/magi/4.5B_base", None)),
    ],
)
def test_names_on_the_hub(name: str, expected: tuple[str, str, str | None]) -> None:
    assert hub.is_hub_name(name) and hub.parse(name) == expected


@pytest.mark.parametrize("name", ["hub:org", "hub:", "hub:org//name", "hub:a/b/../c"])
def test_other_names_on_the_hub_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is not hub:org/name"):
        magi_world.load(name)


def test_the_hub_gives_a_folder(
    official: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(official["tiny"], tmp_path / "ckpt" / "base")
    asked: dict[str, Any] = {}

    def snapshot(repository: str, **options: Any) -> str:
        asked.update(options, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    world = magi_world.load("hub:org/name/ckpt/base@main", parts=UNCACHED)
    assert same(world, load(official["tiny"]))
    assert asked["repository"] == "org/name" and asked["revision"] == "main"
    assert "ckpt/base/*" in asked["allow_patterns"]
    with pytest.raises(WorldNotFound, match="has no folder 'other'"):
        magi_world.load("hub:org/name/other")

    def offline(repository: str, **options: Any) -> str:
        raise OSError("no route to the hub\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        WorldNotFound, match="'hub:org/name' cannot be fetched: no route to the hub"
    ):
        magi_world.load("hub:org/name")
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(MissingPackage, match=r"pip install 'magi-world\[hub\]'"):
        magi_world.load("hub:org/name")


def test_a_compressed_shard_without_zstandard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_official(tmp_path / "z", compress=True)
    monkeypatch.setitem(__import__("sys").modules, "zstandard", None)
    with pytest.raises(MissingPackage, match=r"pip install 'magi-world\[magi1\]'"):
        load(folder)


def test_the_progress_bar_goes_to_standard_error(
    official: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    load(official["tiny"], progress=True)
    shown = capsys.readouterr()
    assert "loading tiny" in shown.err and shown.out == ""
    load(official["tiny"])
    assert capsys.readouterr().err == ""
