"""The T5 encoder of MAGI-1, built by transformers and loaded here (spec section 3.1).

The published folder holds DeepFloyd's packaging of T5-v1.1-XXL: a `config.json`, the tokenizer's
`spiece.model` and two `pytorch_model-*.bin` shards. Those are the one exception to safetensors;
they are read with ``weights_only=True``, so that nothing in them is executed.
"""

import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from magi_world.checkpoints.tensors import read_tensors
from magi_world.errors import CheckpointError, missing_package

CONFIG = "config.json"
_SAFE, _PICKLED = "model.safetensors", "pytorch_model.bin"
_SHARED, _TIED = "shared.weight", "encoder.embed_tokens.weight"  # one tensor under two names
_NOT_ENCODER = ("decoder.", "lm_head.")  # a full T5 has them, the encoder has not


def read_config(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a T5 folder.

    Raises:
        CheckpointError: absent, no JSON object, or a model of another kind.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"there is no T5 configuration {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict) or config.get("model_type", "t5") != "t5":
        raise CheckpointError(f"{path} does not describe a T5 encoder")
    return config


def weight_files(folder: Path) -> list[Path]:
    """The weight files of a T5 folder: safetensors where there are any, else `.bin` shards.

    Raises:
        CheckpointError: none, a broken index, or a shard that the index names is absent.
    """
    for single in (_SAFE, _PICKLED):
        index = folder / f"{single}.index.json"
        if index.is_file():
            try:
                names = sorted(
                    set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
                )
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{index} is no index of shards: {error!r}") from None
            absent = [name for name in names if not (folder / Path(name).name).is_file()]
            if absent:
                raise CheckpointError(f"{index} names shards that are absent: {', '.join(absent)}")
            return [folder / Path(name).name for name in names]
        if (folder / single).is_file():
            return [folder / single]
    raise CheckpointError(
        f"{folder} holds no T5 weights: neither {_SAFE} nor {_PICKLED}, or shards"
    )


def build_t5(config: dict[str, Any]) -> nn.Module:
    """The encoder of a configuration with fresh weights, in evaluation mode.

    ``forward(input_ids=[N, S], attention_mask=[N, S])`` gives `last_hidden_state [N, S, d_model]`.

    Raises:
        MissingPackage: transformers is absent.
        CheckpointError: values that transformers refuses.
    """
    try:
        from transformers import T5Config, T5EncoderModel
    except ImportError as error:
        raise missing_package("transformers", "magi1", "the T5 encoder") from error
    try:
        model: nn.Module = T5EncoderModel(T5Config(**config))
    except Exception as error:  # transformers refuses a value in many ways
        raise CheckpointError(
            f"no T5 encoder can be built from the configuration: {error}"
        ) from None
    return model.eval()


def load_t5(
    folder: Path | str,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """Load the encoder of a T5 folder, shard by shard straight to the device.

    Args:
        folder: the published `t5-v1_1-xxl` folder or one of its layout.
        device: where it runs.
        dtype: float32 as published; bfloat16 halves its memory.

    Raises:
        CheckpointError: a file is absent, damaged or does not fit; names it.
        MissingPackage: transformers is absent.
    """
    folder = Path(folder)
    config, files = read_config(folder), weight_files(folder)
    with torch.device("meta"):
        model = build_t5(config)
    expected = {n: t.shape for n, t in model.state_dict().items() if n != _TIED}
    for path in files:
        chosen: dict[str, Tensor] = {}
        for stored, tensor in _shard(path).items():
            name = _SHARED if stored == _TIED else stored
            if name.startswith(_NOT_ENCODER) or name in chosen:
                continue
            if name not in expected:
                raise CheckpointError(f"{path}: the tensor {name} is unknown")
            if tensor.shape != expected[name]:
                raise CheckpointError(
                    f"{path}: {name} has shape {tuple(tensor.shape)}, "
                    f"expected {tuple(expected[name])}"
                )
            moved = tensor.to(device=device, dtype=dtype, copy=True)
            if not moved.isfinite().all():
                raise CheckpointError(f"{path}: {name} holds NaN or infinity")
            chosen[name] = moved
        model.load_state_dict(chosen, strict=False, assign=True)
    missing = sorted(n for n in expected if model.get_parameter(n).is_meta)
    if missing:
        raise CheckpointError(
            f"{folder}: {len(missing)} tensors are missing, the first is {missing[0]}"
        )
    model.encoder.embed_tokens = model.shared  # type: ignore[union-attr]
    model.requires_grad_(False)
    return model.eval()


def _shard(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, about files that it is going to refuse
            tensors = torch.load(
                path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True
            )
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} cannot be read as plain tensors: {reason}") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CheckpointError(f"{path} is no table of tensors")
    return tensors
