"""A tiny T5 folder in the published layout."""

import json
from pathlib import Path

import torch

from magi_world.models.t5 import build_t5
from magi_world.text.tokenizer import train_tokenizer

CONFIG = {
    "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 96,
    "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16, "layer_norm_epsilon": 1e-6, "model_type": "t5",
}  # fmt: skip
SENTENCES = ["a cat sits on a mat, in the sun", "the dog runs left", "a red house by the sea"]


def write_t5_folder(folder: Path, *, shards: int = 2) -> Path:
    """Write config, tokenizer and random weights as `.bin` shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    train_tokenizer(SENTENCES, 96, folder / "spiece.model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_t5(dict(CONFIG))
    state = {n: t.clone() for n, t in model.state_dict().items() if "embed_tokens" not in n}
    names = sorted(state)
    files = {
        n: f"pytorch_model-{i % shards + 1:05}-of-{shards:05}.bin" for i, n in enumerate(names)
    }
    for file in sorted(set(files.values())):
        torch.save({n: state[n] for n in names if files[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder
