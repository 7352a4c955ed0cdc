"""The options of the verb `generate`, checked one against the other."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from magi_world.checkpoints.magi1_world import Magi1Parts
from magi_world.errors import ConfigError
from magi_world.media.reading import Fit
from magi_world.text.special_tokens import TokenOptions

OFFLOADS = ("kv", "layers", "idle")
PUBLISHED_PREFIX = 32
"""frames of a video that the published code continues, from its beginning"""


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of the verb, as they were given."""

    model: str
    out: Path
    prompt: str | None = None
    prompts: Path | None = None
    image: Path | None = None
    video: Path | None = None
    video_seconds: float | None = None
    fit: str = "stretch"
    seconds: float | None = None
    size: str | None = None
    num_steps: int | None = None
    window: int | None = None
    kv_range: str | None = None
    seed: int | None = None
    quality: str | None = None
    duration: str | None = None
    style: tuple[str, ...] = ()
    opening: tuple[str, ...] = ()
    borders: bool = False
    negative: bool = False
    special_tokens: Path | None = None
    t5: Path | None = None
    vae: Path | None = None
    config: Path | None = None
    compat: str | None = None
    offload: tuple[str, ...] = ()
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.prompts is None):
            raise ConfigError("either --prompt with a text or --prompts with a file is needed")
        if self.image is not None and self.video is not None:
            raise ConfigError("--image and --video: a video begins after one of them")
        if self.video_seconds is not None and self.video is None:
            raise ConfigError("--video-seconds goes with --video")
        for name in ("seconds", "video_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e6:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option} {value}: a number above 0 is needed")
        if self.compat not in (None, "magi-1"):
            raise ConfigError(f"--compat {self.compat!r}: only magi-1 is known")
        if self.compat is not None and self.video_seconds is not None:
            raise ConfigError(
                f"--compat magi-1 continues the first {PUBLISHED_PREFIX} frames of a video: "
                "--video-seconds does not go with it"
            )
        if self.fit not in get_args(Fit):
            raise ConfigError(f"--fit {self.fit!r} is not one of {', '.join(get_args(Fit))}")
        unknown = sorted(set(self.offload) - set(OFFLOADS))
        if unknown:
            raise ConfigError(f"--offload {unknown}: known are {', '.join(OFFLOADS)}")

    def parts(self) -> Magi1Parts:
        """Where the parts of a checkpoint are, and its special tokens."""
        duration: Any = self.duration
        if duration is not None and duration.isdecimal():
            duration = int(duration)
        options = TokenOptions(
            quality=cast(Any, self.quality),
            duration=duration,
            style=self.style,
            opening=self.opening,
            borders=self.borders,
            negative=self.negative,
        )
        return Magi1Parts(
            config=self.config,
            vae=self.vae,
            text=self.t5,
            special_tokens=self.special_tokens,
            options=options if options != TokenOptions() else None,
        )
