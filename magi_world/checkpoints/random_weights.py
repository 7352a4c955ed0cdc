"""Random checkpoints in the published layout, for any configuration and of any size.

Names and shapes come from models on the meta device, values are drawn tensor by tensor while they
are written: a checkpoint larger than the memory can be made.
"""

import json
import math
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from magi_world.checkpoints.magi1_format import TABLE
from magi_world.checkpoints.magi1_writing import write_checkpoint
from magi_world.checkpoints.published_config import PublishedConfig
from magi_world.checkpoints.safetensors_stream import Source, total_bytes, write_stream
from magi_world.checkpoints.shards import SHARD_BYTES, Progress
from magi_world.config import VAEConfig
from magi_world.disk import write_text
from magi_world.errors import ConfigError
from magi_world.kernels.fp8 import LARGEST
from magi_world.models.dit import VideoDiT
from magi_world.models.fp8 import Fp8Linear, install_fp8, quantised_names
from magi_world.models.layers import LayerNorm1p
from magi_world.models.rope import LearnableRope
from magi_world.models.t5 import build_t5
from magi_world.models.vae import VitVAE
from magi_world.text.tokenizer import FILE as TOKENIZER
from magi_world.text.tokenizer import train_tokenizer

_CAPTION_SCALE = 0.125  # deviation of the published text encoder's outputs
_ACTIVATION_RANGE = 6.0  # what a random model's activations seldom exceed
_OTHER_TOKENS = 100  # rows of the published table

# Every letter, digit and punctuation mark of English, so that no prompt is unknown.
_SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Pack my box with five dozen liquor jugs!",
    "A cat walks along the beach at sunset, waves rolling in; the camera follows slowly.",
    'How quickly daft jumping zebras vex: 0123456789 (and "so on") - it\'s a test?',
    "A woman in a red coat crosses the street while snow falls on the old town.",
    "Wide shot of a mountain lake, then the camera moves forward through the fog.",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz",
)


@dataclass(frozen=True, kw_only=True)
class RandomCheckpoint:
    """What a random checkpoint consists of."""

    config: PublishedConfig
    vae: VAEConfig
    t5: dict[str, Any] | None
    """configuration of the text encoder, None for none"""

    def __post_init__(self) -> None:
        width = self.config.dit.caption_channels
        if self.t5 is not None and self.t5.get("d_model") != width:
            raise ConfigError(
                f"d_model {self.t5.get('d_model')} of the text encoder is not caption_channels "
                f"{width} of the DiT"
            )
        if self.vae.z_chans != self.config.dit.latent_channels:
            raise ConfigError(
                f"the VAE has {self.vae.z_chans} channels, the DiT "
                f"{self.config.dit.latent_channels}"
            )

    def build_dit(self) -> VideoDiT:
        """The DiT on the meta device, FP8 where the configuration says so."""
        with torch.device("meta"):
            dit = VideoDiT(self.config.dit)
            if self.config.magi1.fp8_quant:
                install_fp8(dit, quantised_names(self.config.dit.num_layers))
        return dit

    def build_vae(self) -> VitVAE:
        """The VAE on the meta device."""
        with torch.device("meta"):
            return VitVAE(self.vae)

    def summary(self) -> dict[str, int]:
        """Parameters, tensors and bytes of the parts, counted on the meta device."""
        dtype = getattr(torch, self.config.dit.params_dtype)
        dit, vae = self.build_dit(), self.build_vae()
        counts = {
            "parameters": count_parameters(dit),
            "tensors": len(dit.state_dict()),
            "bytes": total_bytes(random_sources(dit, 0, dtype)),
            "vae_parameters": count_parameters(vae),
        }
        others = counts["vae_parameters"]
        if self.t5 is not None:
            with torch.device("meta"):
                counts["text_parameters"] = count_parameters(build_t5(self.t5))
            others += counts["text_parameters"]
        counts["bytes_on_disk"] = counts["bytes"] + others * torch.bfloat16.itemsize
        return counts

    def write(
        self,
        folder: Path,
        *,
        seed: int = 0,
        shard_bytes: int = SHARD_BYTES,
        compress: bool = False,
        progress: Progress | None = None,
    ) -> None:
        """Write it; the same seed gives the same files.

        Raises:
            CheckpointError: the folder holds a checkpoint already.
            MissingPackage: a text encoder without transformers or sentencepiece, or ``compress``
                without zstandard.
        """
        dtype = getattr(torch, self.config.dit.params_dtype)
        with tempfile.TemporaryDirectory() as place:
            text = table = None
            if self.t5 is not None:
                text = Path(place) / "t5"
                write_random_t5(text, self.t5, seed)
                table = Path(place) / TABLE
                write_random_table(table, self.config.dit.caption_channels, seed)
            write_checkpoint(
                folder,
                self.config,
                random_sources(self.build_dit(), seed, dtype),
                self.vae,
                random_sources(self.build_vae(), seed, torch.bfloat16),
                text_folder=text,
                special_tokens=table,
                shard_bytes=shard_bytes,
                compress=compress,
                progress=progress,
            )


def count_parameters(module: nn.Module) -> int:
    """Parameters of a model; FP8 weights count, their scales do not."""
    fp8 = sum(m.weight.numel() for m in module.modules() if isinstance(m, Fp8Linear))
    return sum(p.numel() for p in module.parameters()) + fp8


def random_sources(module: nn.Module, seed: int, dtype: torch.dtype) -> list[Source]:
    """The tensors of a model with random values, drawn when they are written.

    Args:
        module: on the meta device.
        seed: every tensor's values depend on it and on the tensor's name alone.
        dtype: of what is floating and not float8 or one of its scales.
    """
    found: list[Source] = []
    done: set[int] = set()  # a tied tensor is written once
    for prefix, part in module.named_modules():
        own = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        for name, tensor in own:
            full = f"{prefix}.{name}".lstrip(".")
            if id(tensor) in done or name in part._non_persistent_buffers_set:
                continue
            done.add(id(tensor))
            kept = dtype if not isinstance(part, Fp8Linear) else tensor.dtype

            def make(
                part: nn.Module = part, full: str = full, t: Tensor = tensor, d: torch.dtype = kept
            ) -> Tensor:
                return _draw(part, full, tuple(t.shape), seed).to(d)

            found.append(Source(full, kept, tuple(tensor.shape), make))
    order = {name: index for index, name in enumerate(module.state_dict())}
    return sorted(found, key=lambda source: order[source.name])


def _draw(part: nn.Module, full: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """Values under which activations keep their size from layer to layer."""
    # the CPU generator takes 32 bits of a seed and no more
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {full}".encode()))
    noise = torch.randn(shape, generator=generator)
    name = full.rpartition(".")[2]
    if isinstance(part, Fp8Linear):
        return _draw_fp8(part, name, noise)
    if isinstance(part, LearnableRope):
        k = torch.arange(shape[0], dtype=torch.float32) / shape[0]
        return torch.exp(-math.log(10000.0) * k)
    if name == "null_caption_embedding":
        return noise * _CAPTION_SCALE
    if name in ("pos_embed", "cls_token", "bias"):
        return 0.02 * noise
    if len(shape) < 2:  # norms: around the identity, but not so that mistakes would be hidden
        return 0.05 * noise + (0.0 if isinstance(part, LayerNorm1p) else 1.0)
    return noise / math.sqrt(math.prod(shape[1:]))


def _draw_fp8(part: Fp8Linear, name: str, noise: Tensor) -> Tensor:
    if name == "weight":  # a scale that puts four deviations at the end of the range
        return (noise * (LARGEST / 4)).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    if name == "weight_scale":
        return torch.full_like(noise, 4 / LARGEST * part.in_features**-0.5)
    return torch.full_like(noise, _ACTIVATION_RANGE / LARGEST)


def write_random_t5(folder: Path, config: dict[str, Any], seed: int) -> None:
    """Write a T5 folder with random weights and a small tokenizer.

    Raises:
        ConfigError: fewer tokens in the model than in the tokenizer.
        MissingPackage: transformers or sentencepiece is absent.
    """
    with torch.device("meta"):
        model = build_t5(config)
    train_tokenizer(_SENTENCES, min(400, int(config["vocab_size"])), folder / TOKENIZER)
    write_stream(
        folder / "model.safetensors", random_sources(model, seed, torch.bfloat16), {"format": "pt"}
    )
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")


def write_random_table(path: Path, width: int, seed: int) -> None:
    """Write a table of special tokens in the published form."""
    rng = np.random.default_rng(seed)

    def rows(n: int) -> NDArray[np.float64]:
        return _CAPTION_SCALE * rng.standard_normal((n, width))

    np.savez(path, caption_token=rows(1), logo_token=rows(1), other_tokens=rows(_OTHER_TOKENS))
