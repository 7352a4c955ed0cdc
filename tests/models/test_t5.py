"""Loading T5: shards, plain tensors only, nothing half-loaded."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from magi_world.errors import CheckpointError
from magi_world.models.t5 import load_t5, weight_files
from tests.text.t5_folder import write_t5_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_t5_folder(tmp_path)


def shard(folder: Path) -> Path:
    return weight_files(folder)[0]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for p in weight_files(folder) for k, v in torch.load(p, weights_only=True).items()}


def test_shards_and_safetensors_give_the_same_model(folder: Path) -> None:
    tensors = stored(folder)
    from_bin = load_t5(folder).state_dict()
    assert {n for n in from_bin if "embed_tokens" not in n} == set(tensors)
    assert all(torch.equal(from_bin[name], tensor) for name, tensor in tensors.items())
    # safetensors come first where both lie; the tied name, a decoder and a head are fine
    tied = {"encoder.embed_tokens.weight": tensors.pop("shared.weight")}
    rest = {"decoder.block.0.weight": torch.zeros(2), "lm_head.weight": torch.zeros(2)}
    save_file({**tensors, **tied, **rest}, folder / "model.safetensors")
    assert [p.name for p in weight_files(folder)] == ["model.safetensors"]
    from_safe = load_t5(folder).state_dict()
    assert all(torch.equal(from_bin[name], from_safe[name]) for name in from_bin)


def test_the_embedding_is_one_tensor(folder: Path) -> None:
    model = load_t5(folder, dtype=torch.bfloat16)
    assert model.shared.weight is model.encoder.embed_tokens.weight  # type: ignore[union-attr]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_old_files_without_a_zip_are_read(folder: Path) -> None:
    path = shard(folder)
    tensors = torch.load(path, weights_only=True)
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    loaded = load_t5(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_nothing_in_a_shard_is_executed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    torch.save({"shared.weight": Evil()}, shard(folder))
    with pytest.raises(CheckpointError, match=f"{shard(folder).name} cannot be read as plain"):
        load_t5(folder)
    shard(folder).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError, match="cannot be read as plain"):
        load_t5(folder)
    assert not (folder / "pwned").exists()


def test_damage_is_named(folder: Path) -> None:
    path = shard(folder)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=path.name):
            load_t5(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("shared.weight"), "1 tensors are missing, the first is shared.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "the tensor extra is unknown"),
        (lambda t: t.update({"shared.weight": torch.zeros(3, 3)}), r"has shape \(3, 3\), expected"),
        (lambda t: t["shared.weight"].fill_(torch.nan), "shared.weight holds NaN"),
    ],
)
def test_what_does_not_fit_is_named(folder: Path, change: object, said: str) -> None:
    (path,) = [
        p for p in weight_files(folder) if "shared.weight" in torch.load(p, weights_only=True)
    ]
    tensors = torch.load(path, weights_only=True)
    change(tensors)  # type: ignore[operator]
    torch.save(tensors, path)
    with pytest.raises(CheckpointError, match=said):
        load_t5(folder)


def test_a_list_is_no_table(folder: Path) -> None:
    torch.save([torch.zeros(1)], shard(folder))
    with pytest.raises(CheckpointError, match="is no table of tensors"):
        load_t5(folder)
