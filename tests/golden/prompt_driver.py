"""Driver of the prompt cases: cleaner, special tokens, T5 (section 5)."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from magi_world.models.t5 import load_t5
from magi_world.text.cleaning import clean_published
from magi_world.text.special_tokens import MAX_DURATION, NEGATIVE, SpecialTokens, TokenOptions
from tests.golden.cases import Case, Computed

_TRUE = {"1", "true", "yes", "y", "on", "enabled"}
_SHOWN = 9  # first tokens per chunk in the symbolic case
_ALL = TokenOptions(
    quality="hq", style=("3d", "anime"), opening=("static", "dynamic"), borders=True
)
_NAMES = (*_ALL.names(), *(f"DURATION_{k}" for k in range(1, MAX_DURATION + 1)))
_NULL_TOKENS = 50  # ones of the null mask, with or without negative tokens


def run_prompt(case: Case) -> Computed:
    """The fields of the case tell which computation it is."""
    meta = case.meta
    if "pairs" in meta:
        pairs = [{"output": clean_published(pair["input"])} for pair in meta["pairs"]]
        return Computed(values={"pairs": pairs})
    if "cases" in meta:
        values: dict[str, Any] = {"cases": [_symbolic(entry) for entry in meta["cases"]]}
        published = case.folder / "special_tokens.npz"
        if published.is_file():
            values |= _table(published, meta)
        return Computed(values=values)
    if "keys" in meta:
        return _padded(case)
    inputs = case.inputs()
    with _t5_folder(case.folder / meta["weights"], meta["config"]["t5_config"]) as folder:
        model = load_t5(folder)
        hidden = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    return Computed(tensors={"last_hidden_state": hidden.last_hidden_state})


def run_t5_weights(case: Case) -> Computed:
    """Strict loading of the encoder; the values must arrive unchanged."""
    path, config = case.folder / case.entry["file"], case.meta["config"]["t5_config"]
    with _t5_folder(path, config) as folder:
        loaded = load_t5(folder).state_dict()
    stored = case.stored()
    tied = loaded.pop("encoder.embed_tokens.weight")
    assert torch.equal(tied, stored["shared.weight"])
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], stored[name]) for name in stored)
    return Computed(values={"number_of_parameters": sum(x.numel() for x in stored.values())})


def token_options(environment: Mapping[str, str]) -> TokenOptions:
    """The options that the published environment variables stand for."""

    def on(name: str) -> bool:
        return environment.get(name, "").lower() in _TRUE

    return TokenOptions(
        quality="hq" if on("PAD_HQ") else None,
        duration="auto" if on("PAD_DURATION") else None,
        style=(("3d",) if on("PAD_THREE_D_MODEL") else ())
        + (("anime",) if on("PAD_TWO_D_ANIME") else ()),
        opening=(("static",) if on("PAD_STATIC") else ())
        + (("dynamic",) if on("PAD_DYNAMIC") else ()),
        borders=on("PAD_BORDERNESS"),
        negative=on("NEG_PROMPT"),
    )


class _t5_folder(tempfile.TemporaryDirectory[str]):
    """A folder in the published layout around a weight file."""

    def __init__(self, weights: Path, config: dict[str, Any]) -> None:
        super().__init__()
        folder = Path(self.name)
        (folder / "config.json").write_text(json.dumps(config))
        os.symlink(weights.resolve(), folder / "model.safetensors")


def golden_name(name: str) -> str:
    """DURATION_3 is written DURATION_TOKEN_3, HQ is written HQ_TOKEN."""
    stem, _, number = name.partition("DURATION_")
    return f"DURATION_TOKEN_{number}" if number else f"{stem}_TOKEN"


def _symbolic(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Which rows end up where, told with numbered vectors instead of the published table."""
    options = token_options(entry["environment"])
    rows, chunks, clean = (
        entry["caption_length"], entry["infer_chunk_num"], entry["clean_chunk_num"],
    )  # fmt: skip
    names = [*NEGATIVE, *_NAMES]
    numbers = {name: -1.0 - index for index, name in enumerate(dict.fromkeys(names))}
    table = SpecialTokens({name: torch.tensor([[n]]) for name, n in numbers.items()})
    by_number = {number: golden_name(name) for name, number in numbers.items()}
    places = torch.arange(rows, dtype=torch.float32)[:, None]

    def shown(caption: Tensor, kind: str) -> list[str]:
        row = caption[:_SHOWN, 0].tolist()
        return [by_number[x] if x < 0 else f"{kind}[{int(x)}]" for x in row]

    first, lengths = [], []
    for chunk in range(chunks):
        if chunk < clean:  # a chunk of the prefix: the raw null table, never read
            first.append(shown(places, "null"))
            lengths.append(0)
            continue
        tokens = options.names(chunks - chunk - 1)
        caption = table.prepend(places, tokens, rows)
        first.append(shown(caption, "caption"))
        valid = torch.arange(entry["caption_valid_tokens"], dtype=torch.float32)[:, None]
        lengths.append(len(table.prepend(valid, tokens, rows)))
    null = table.prepend(places, NEGATIVE if options.negative else (), rows)
    width = 4096
    return {
        "special_token_keys": [
            "DURATION_TOKEN" if name.startswith("DURATION") else golden_name(name)
            for name in options.names(chunks)
        ],
        "negative_special_token_keys": (
            [golden_name(name) for name in NEGATIVE] if options.negative else None
        ),
        "caption_shape": [1, chunks, len(caption), width],
        "mask_shape": [1, chunks, len(caption)],
        "mask_lengths": lengths,
        "first_tokens_per_chunk": first,
        "null_shape": [1, chunks, len(null), width],
        "null_mask_lengths": [_NULL_TOKENS] * chunks,
        "null_first_tokens": shown(null, "null"),
    }


def _table(path: Path, meta: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics of the published table, as stored and as used."""
    with np.load(path) as arrays:
        npz: dict[str, dict[str, Any]] = {
            name: {
                "shape": list(arrays[name].shape),
                "mean": float(arrays[name].mean()),
                "std": float(arrays[name].std()),
            }
            for name in meta["npz"]
        }
    width = npz["caption_token"]["shape"][1]
    table = SpecialTokens.load(path, width)
    tokens = {}
    for name in (*NEGATIVE, *_NAMES):
        vector = table.vector(name).double()
        tokens[golden_name(name)] = {
            "shape": list(vector.shape),
            "mean": float(vector.mean()),
            "std": float(vector.std(correction=0)),
            "first3": vector[0, :3].tolist(),
        }
    return {"npz": npz, "tokens": tokens}


def _padded(case: Case) -> Computed:
    """Tokens of a table in front of a short caption and of its mask."""
    meta, inputs = case.meta, case.inputs()
    caption, mask = inputs["caption"][0, 0], inputs["mask"][0].float()
    table = SpecialTokens.load(case.folder / meta["special_tokens_file"], caption.shape[1])
    padded, masks = [], []
    for chunk in range(meta["chunk_num"]):
        left = min(meta["chunk_num"] - chunk, MAX_DURATION)
        names = tuple(
            f"DURATION_{left}" if key == "DURATION_TOKEN" else key.removesuffix("_TOKEN")
            for key in meta["keys"]
        )
        padded.append(table.prepend(caption, names, 800))
        masks.append(torch.cat([torch.ones(len(names)), mask])[:800])
    return Computed(
        tensors={"padded": torch.stack(padded)[None], "padded_mask": torch.stack(masks)[None]}
    )
