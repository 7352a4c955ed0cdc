"""MAGI-1's published layout: found, checked and read (spec sections 1.1, 2.1, 2.2 and 3.1).

    <folder>/config.json                                     the three sections, any name
    <folder>/inference_weight[.fp8][.distill]/model*.safetensors[.zst]   the DiT
    <vae>/config.json  <vae>/diffusion_pytorch_model.safetensors
    <t5>/t5-v1_1-xxl/…                                       the text encoder
    special_tokens.npz

VAE, T5 and table may lie in the folder or beside it, as in the published repository.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from magi_world.checkpoints.published_config import (
    PublishedConfig,
    is_published_config,
    read_json,
    read_published_config,
)
from magi_world.checkpoints.shards import Progress, Shards, check_shards, load_shards, open_shards
from magi_world.config import VAEConfig, WorldConfig
from magi_world.errors import CheckpointError, ConfigError
from magi_world.magi1_config import T5Config
from magi_world.models.dit import VideoDiT
from magi_world.models.fp8 import float8_names, install_fp8
from magi_world.models.t5 import read_config as read_t5_config
from magi_world.models.vae import VitVAE

VAE_CLASS = "ViTVAE"
VAE_WEIGHTS = "diffusion_pytorch_model.safetensors"
T5_FOLDER = "t5-v1_1-xxl"
TABLE = "special_tokens.npz"

_WEIGHTS = "inference_weight*"
# keys of `ddconfig` that change nothing at their published values, and the values that may stand
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "qk_scale": (None,), "drop_rate": (0,), "attn_drop_rate": (0,), "drop_path_rate": (0,),
}  # fmt: skip


@dataclass(frozen=True)
class Magi1Checkpoint:
    """A checkpoint whose files have been found and whose headers have been read."""

    name: str
    config: PublishedConfig
    weights: Shards
    vae: VAEConfig
    vae_weights: Shards
    text_folder: Path | None
    special_tokens: Path | None

    def world_config(self) -> WorldConfig:
        """The configuration of the world that it becomes.

        Raises:
            ConfigError: parts that do not belong together.
        """
        config = self.config
        text = None
        if self.text_folder is not None:
            width = read_t5_config(self.text_folder).get("d_model", 0)
            text = T5Config(d_model=width, max_tokens=min(800, config.dit.caption_max_length))
        return WorldConfig(
            dit=config.dit,
            vae=self.vae,
            sampling=config.sampling(),
            height=config.height,
            width=config.width,
            fps=config.magi1.fps,
            text=text,
            magi1=config.magi1,
        )

    def load(
        self,
        dit: VideoDiT,
        vae: VitVAE,
        *,
        device: torch.device,
        dtype: torch.dtype,
        progress: Progress | None = None,
    ) -> None:
        """Fill models that stand on the meta device.

        Raises:
            CheckpointError: a checkpoint of another configuration, or a damaged file.
        """
        prepare_fp8(dit, self.weights, quantised=self.config.magi1.fp8_quant)
        check_shards(self.weights, dit)
        check_shards(self.vae_weights, vae)
        load_shards(vae, self.vae_weights, device=device, progress=progress)
        load_dit(dit, self.weights, device=device, dtype=dtype, progress=progress)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights that :meth:`load` reads."""
        return self.weights.nbytes + self.vae_weights.nbytes


def prepare_fp8(dit: VideoDiT, weights: Shards, *, quantised: bool) -> None:
    """Give a DiT FP8 linears where its weights are float8.

    Raises:
        CheckpointError: float8 weights against the configuration, or the other way round.
    """
    names = float8_names({name: entry.dtype for name, entry in weights.entries.items()})
    if bool(names) != quantised and dit.config.num_layers > 2:
        held = f"{len(names)} FP8 linears" if names else "no FP8 linears"
        raise CheckpointError(f"{weights.folder} holds {held}, fp8_quant is {quantised}")
    install_fp8(dit, names)


def load_dit(
    dit: VideoDiT,
    weights: Shards,
    *,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> None:
    """Stream the weights of a DiT in the dtypes of the published recipe.

    Raises:
        CheckpointError: as :func:`magi_world.checkpoints.shards.load_shards`.
    """
    buffers = {name for name, _ in dit.named_buffers()}

    def dtype_of(name: str, declared: torch.dtype) -> torch.dtype:
        return declared if name in buffers else dit.recipe_dtype(name, dtype)

    load_shards(dit, weights, device=device, dtype_of=dtype_of, progress=progress)


def is_magi1(path: Path) -> bool:
    """Say whether a path looks like a checkpoint in the published layout."""
    if path.is_file():
        return path.suffix == ".json"
    return path.is_dir() and (any(path.glob(_WEIGHTS)) or bool(_configs(path)))


def find_checkpoint(
    path: Path,
    *,
    config: Path | None = None,
    vae: Path | None = None,
    text: Path | None = None,
    special_tokens: Path | None = None,
) -> Magi1Checkpoint:
    """Find the parts of a checkpoint and check what can be checked without reading weights.

    Args:
        path: the folder, or the configuration file.
        config: the configuration file, when the folder holds none or several.
        vae: folder of the VAE; None takes what the configuration names, else one nearby.
        text: the same for T5; a configuration with an empty ``t5_pretrained`` has none.
        special_tokens: the table; None takes a ``special_tokens.npz`` nearby, if there is one.

    Raises:
        CheckpointError: a part is absent or damaged; the message lists where it was looked for.
        ConfigError: a configuration that cannot work.
    """
    file = config or (path if path.is_file() else _config_of(path))
    settings = read_published_config(file)
    weights = _find_weights(path, file, settings)
    base = weights.parent
    places = _Places(base, file.parent)
    vae_folder = vae or _first(places.of(settings.vae_pretrained, "vae"), "config.json", "VAE")
    text_folder = _inside(text) if text is not None else None
    if text is None and settings.t5_pretrained:
        candidates = [_inside(place) for place in places.of(settings.t5_pretrained, "t5")]
        text_folder = _first(candidates, "config.json", "T5 encoder")
    if special_tokens is None:
        near = [place / TABLE for place in places.nearby()]
        special_tokens = next((table for table in near if table.is_file()), None)
    return Magi1Checkpoint(
        name=base.resolve().name,
        config=settings,
        weights=open_shards(weights),
        vae=read_vae_config(vae_folder),
        vae_weights=open_shards(vae_folder, VAE_WEIGHTS),
        text_folder=text_folder,
        special_tokens=special_tokens,
    )


def read_vae_config(folder: Path) -> VAEConfig:
    """Read the configuration of a VAE folder.

    Raises:
        CheckpointError: absent, no JSON, or no ViT VAE.
        ConfigError: a value that cannot work.
    """
    path = folder / "config.json"
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("ddconfig"), dict):
        raise CheckpointError(f"{path} has no ddconfig: it describes no MAGI-1 VAE")
    kind, model_type = document.get("_class_name", VAE_CLASS), document.get("model_type", "vit")
    if kind != VAE_CLASS or model_type != "vit":
        raise CheckpointError(
            f"{path} describes {kind!r} of type {model_type!r}; only {VAE_CLASS!r} of type 'vit' "
            "is known"
        )
    values = dict(document["ddconfig"])
    known = {field.name for field in fields(VAEConfig)}
    for name, allowed in _NEUTRAL.items():
        if name in values and values.pop(name) not in allowed:
            raise ConfigError(f"{path}: {name} is not {allowed[0]}, as published")
    values.pop("norm_layer", None)  # the name of a class; the published one is LayerNorm
    try:
        return VAEConfig.from_dict({k: v for k, v in values.items() if v is not None or k in known})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


class _Places:
    """Where the parts of a checkpoint may lie."""

    def __init__(self, base: Path, config_folder: Path) -> None:
        self._base, self._config_folder = base, config_folder

    def nearby(self) -> Iterator[Path]:
        """The checkpoint's folder and the two above it: `ckpt/magi/4.5B_base` has `ckpt/vae`."""
        base = self._base.resolve()
        yield from (base, base.parent, base.parent.parent)

    def of(self, named: str, usual: str) -> list[Path]:
        """Candidates for a part, the place that the configuration names first."""
        candidates = list(resolve(named, self._config_folder)) if named else []
        folders = (usual, f"{usual}_pretrained")
        candidates += [place / name for place in self.nearby() for name in folders]
        return list(dict.fromkeys(candidates))


def resolve(named: str, folder: Path) -> Iterator[Path]:
    """Places that a path in a configuration file can mean: beside the file, or from here."""
    path = Path(named).expanduser()
    yield folder / path
    if not path.is_absolute():
        yield path


def _inside(folder: Path) -> Path:
    return folder / T5_FOLDER if (folder / T5_FOLDER).is_dir() else folder


def _first(candidates: Sequence[Path], file: str, what: str) -> Path:
    for folder in candidates:
        if (folder / file).is_file():
            return folder
    raise CheckpointError(f"there is no {what}; looked in {', '.join(map(str, candidates))}")


def _configs(folder: Path) -> list[Path]:
    """The three-section files of a folder."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            if is_published_config(read_json(path)):
                found.append(path)
        except CheckpointError:
            if path.name == "config.json":
                raise
    return found


def _config_of(folder: Path) -> Path:
    found = _configs(folder)
    if len(found) == 1:
        return found[0]
    what = f"several: {', '.join(p.name for p in found)}" if found else "none"
    raise CheckpointError(
        f"{folder} should hold one configuration file with the sections of MAGI-1, it holds "
        f"{what}; name the file instead"
    )


def _find_weights(path: Path, file: Path, settings: PublishedConfig) -> Path:
    """Folder of the DiT's weights."""
    folders = [path] if path.is_dir() else [*resolve(settings.load, file.parent), file.parent]
    candidates = [folder / settings.weight_folder for folder in dict.fromkeys(folders)]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    held = [p.name for folder in folders for p in folder.glob(_WEIGHTS)]
    raise CheckpointError(
        f"there is no folder {' or '.join(map(str, candidates))}, which distill "
        f"{settings.magi1.distill} and fp8_quant {settings.magi1.fp8_quant} ask for"
        + (f"; there is {', '.join(held)}" if held else "")
    )
