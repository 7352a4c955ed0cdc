"""MAGI-1's configuration file: three JSON sections, in and out (spec section 2.1).

``model_config`` is :class:`DiTConfig` field by field. ``runtime_config`` and ``engine_config``
together are :class:`Magi1Config`, the size of the picture and three places on disk.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from magi_world.config import DiTConfig, SamplingConfig
from magi_world.config_section import require, require_counts
from magi_world.disk import write_text
from magi_world.errors import CheckpointError, ConfigError
from magi_world.magi1_config import Magi1Config

SECTIONS = ("model_config", "runtime_config", "engine_config")
PICTURE_MULTIPLE = 16
"""pixels: 8 of the VAE, 2 of the DiT's patches"""

_PREFIX_RANGE = 8  # what an empty list of KV ranges means for a prefix (golden README 6.4)
_RENAMED = {"window_size": "window", "distill_nearly_clean_chunk_threshold": "near_clean_threshold"}
_PUBLISHED_NAME = {ours: published for published, ours in _RENAMED.items()}
_PLACES = ("t5_pretrained", "vae_pretrained", "load")
_REQUIRED = ("num_steps", "video_size_h", "video_size_w")
# Names of the fields in each section, in the order in which the released files have them.
_RUNTIME = (
    "cfg_number", "cfg_t_range", "prev_chunk_scales", "text_scales", "noise2clean_kvrange",
    "clean_chunk_kvrange", "clean_t", "seed", "num_frames", "video_size_h", "video_size_w",
    "num_steps", "window_size", "fps", "chunk_width", "t5_pretrained", "t5_device",
    "vae_pretrained", "scale_factor", "temporal_downsample_factor", "load",
)  # fmt: skip
_ENGINE = (
    "distributed_backend", "distributed_timeout_minutes", "pp_size", "cp_size", "cp_strategy",
    "ulysses_overlap_degree", "fp8_quant", "distill_nearly_clean_chunk_threshold", "shortcut_mode",
    "distill", "kv_offload", "enable_cuda_graph",
)  # fmt: skip
_MODEL = (
    "model_name", "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads",
    "num_query_groups", "kv_channels", "layernorm_epsilon", "apply_layernorm_1p",
    "x_rescale_factor", "half_channel_vae", "params_dtype", "patch_size", "t_patch_size",
    "in_channels", "out_channels", "cond_hidden_ratio", "caption_channels", "caption_max_length",
    "xattn_cond_hidden_ratio", "cond_gating_ratio", "gated_linear_unit",
)  # fmt: skip
_DTYPES = {"torch.bfloat16": "bfloat16", "torch.float32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class PublishedConfig:
    """One configuration file, read and checked."""

    dit: DiTConfig
    magi1: Magi1Config
    height: int
    width: int
    load: str = ""
    """folder with the weights, as the file names it"""
    t5_pretrained: str = ""
    vae_pretrained: str = ""

    def __post_init__(self) -> None:
        require_counts(self, "height", "width")
        require(
            self.height % PICTURE_MULTIPLE == 0 and self.width % PICTURE_MULTIPLE == 0,
            f"pictures of {self.height}x{self.width} pixels: height and width must be multiples "
            f"of {PICTURE_MULTIPLE}",
        )
        require(
            self.dit.params_dtype in ("bfloat16", "float32"),
            f"params_dtype {self.dit.params_dtype!r} is not one of ['bfloat16', 'float32']",
        )
        for name in _PLACES:
            value = getattr(self, name)
            require(isinstance(value, str), f"{name} {value!r}: a path is needed")
        self.magi1.check()

    @classmethod
    def from_dict(cls, document: Any) -> "PublishedConfig":
        """Build from the parsed file; absent fields take the published base model's values.

        Raises:
            ConfigError: a section is missing or unknown, a field is unknown, required, or has a
                value that cannot work or that contradicts another.
        """
        require(isinstance(document, Mapping), "the configuration is no JSON object")
        missing = [name for name in SECTIONS if name not in document]
        require(not missing, f"the configuration lacks the sections {missing}")
        unknown = sorted(set(document) - set(SECTIONS))
        require(not unknown, f"unknown sections {unknown}; known are {list(SECTIONS)}")
        for name in SECTIONS:
            require(isinstance(document[name], Mapping), f"{name} is no JSON object")
        model, runtime, engine = (dict(document[name]) for name in SECTIONS)
        for section, values, known in (
            ("model_config", model, _MODEL),
            ("runtime_config", runtime, _RUNTIME),
            ("engine_config", engine, _ENGINE),
        ):
            extra = sorted(set(values) - set(known))
            require(not extra, f"{section}: unknown fields {extra}; known are {sorted(known)}")
        absent = [name for name in _REQUIRED if name not in runtime]
        require(not absent, f"runtime_config lacks {absent}")
        dtype = model.get("params_dtype")
        if isinstance(dtype, str):
            model["params_dtype"] = _DTYPES.get(dtype, dtype)
        height, width = runtime.pop("video_size_h"), runtime.pop("video_size_w")
        places = {name: runtime.pop(name) for name in _PLACES if name in runtime}
        places = {name: "" if place is None else place for name, place in places.items()}
        settings = {_RENAMED.get(name, name): v for name, v in {**runtime, **engine}.items()}
        return cls(
            dit=DiTConfig.from_dict(model),
            magi1=Magi1Config.from_dict(settings),
            height=height,
            width=width,
            **places,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the three sections with every field that the released code asks for."""
        settings = {**self.magi1.to_dict(), "video_size_h": self.height, "video_size_w": self.width}
        settings |= {name: getattr(self, name) for name in _PLACES}
        published = {_PUBLISHED_NAME.get(name, name): value for name, value in settings.items()}
        model = asdict(self.dit)
        return {
            "model_config": {name: model[name] for name in _MODEL},
            "runtime_config": {name: published[name] for name in _RUNTIME},
            "engine_config": {name: published[name] for name in _ENGINE},
        }

    @property
    def weight_folder(self) -> str:
        """Name of the folder with the DiT's weights."""
        quantised = ".fp8" if self.magi1.fp8_quant else ""
        return "inference_weight" + quantised + (".distill" if self.magi1.distill else "")

    def sampling(self) -> SamplingConfig:
        """The part of the settings that every world has."""
        magi1 = self.magi1
        return SamplingConfig(
            chunk_width=magi1.chunk_width,
            kv_range=magi1.max_kv_range or _PREFIX_RANGE,
            num_steps=magi1.num_steps,
            clean_t=magi1.clean_t,
            scale_factor=magi1.scale_factor,
            null_prompt_tokens=min(50, self.dit.caption_max_length),
            clean_null_caption=True,
        )


def read_published_config(path: Path) -> PublishedConfig:
    """Read a configuration file.

    Raises:
        CheckpointError: the file is absent or no JSON.
        ConfigError: as :meth:`PublishedConfig.from_dict`, with the file's name in front.
    """
    document = read_json(path)
    try:
        return PublishedConfig.from_dict(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def write_published_config(config: PublishedConfig, path: Path) -> None:
    """Write a configuration file under a temporary name, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(config.to_dict(), indent=4) + "\n")


def is_published_config(document: Any) -> bool:
    """Say whether parsed JSON is meant as such a file: it has one of the sections."""
    return isinstance(document, Mapping) and any(name in document for name in SECTIONS)


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        CheckpointError: the file is absent, not readable or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"there is no file {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path} is no JSON: {error}") from None
