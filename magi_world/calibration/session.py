"""A calibration: videos of both kinds, peaks of their activations, an FP8 world, and its errors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi_world.calibration.errors import by_layer, compared, relative_error
from magi_world.calibration.smoothquant import ALPHA, check_quantisable, observed, quantise_dit
from magi_world.checkpoints.magi1_world import magi1_card
from magi_world.config import WorldConfig
from magi_world.errors import ConfigError
from magi_world.magi1_config import Magi1Config
from magi_world.models.dit import VideoDiT
from magi_world.sampling.generate import GenerateSettings, generate
from magi_world.world import World

IMAGE_SHARE = 0.3
"""share of image-to-video among the videos, as the paper mixes them"""

_STEPS = range(12, 33)  # steps of the paper's calibration, drawn uniformly
_DISTILLED_STEPS = (12, 16, 32)  # those of them that distilled models know


@dataclass(frozen=True, kw_only=True)
class CalibrationVideo:
    """One video of the calibration set."""

    prompt: str
    num_steps: int
    seed: int
    image: NDArray[np.uint8] | None = None
    """`[H, W, 3]`, in the size of the world's pictures"""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a calibration gives."""

    world: World
    """the FP8 checkpoint; it shares what is not quantised with the original"""
    layers: list[dict[str, Any]]
    """a row a layer: relative L2 error of every linear against the unquantised one"""
    latents: list[float]
    """relative L2 error of whole videos from the same noise"""
    alpha: float

    def report(self) -> dict[str, Any]:
        """Everything that is measured, as plain data."""
        return {"alpha": self.alpha, "layers": self.layers, "latents": self.latents}


def allowed_steps(config: Magi1Config) -> list[int]:
    """Step counts that calibration draws from: 12 … 32, what model and window allow.

    Raises:
        ConfigError: there are none.
    """
    stages = max(1, len(config.noise2clean_kvrange))
    known = _DISTILLED_STEPS if config.distill else _STEPS
    allowed = [n for n in known if n % config.window == 0 and n % stages == 0]
    if not allowed:
        raise ConfigError(
            f"no step count of {list(known)} is a multiple of the window {config.window} and of "
            f"the {stages} KV ranges"
        )
    return allowed


def plan_videos(
    config: Magi1Config,
    prompts: Sequence[str],
    images: Sequence[NDArray[np.uint8]] = (),
    *,
    seed: int = 0,
    image_share: float = IMAGE_SHARE,
) -> list[CalibrationVideo]:
    """Make one video a prompt; with images, a share of them begins with one.

    Args:
        config: of the checkpoint.
        prompts: at least one.
        images: uint8 `[H, W, 3]`, taken in turn.
        seed: draws steps, noise seeds and which videos begin with an image.
        image_share: of the videos, rounded up.

    Raises:
        ConfigError: no prompt, or a share outside [0, 1].
    """
    if not prompts:
        raise ConfigError("a calibration needs at least one prompt")
    if not 0 <= image_share <= 1:
        raise ConfigError(f"image_share {image_share} is outside [0, 1]")
    random, steps = Random(seed), allowed_steps(config)
    wanted = -int(-len(prompts) * image_share // 1) if images else 0
    begun = {index: images[k % len(images)] for k, index in enumerate(
        sorted(random.sample(range(len(prompts)), wanted)))}  # fmt: skip
    return [
        CalibrationVideo(
            prompt=prompt,
            num_steps=random.choice(steps),
            seed=random.randrange(2**31),
            image=begun.get(index),
        )
        for index, prompt in enumerate(prompts)
    ]


def check_calibratable(config: WorldConfig, dit: VideoDiT, alpha: float) -> Magi1Config:
    """Refuse a world that cannot be calibrated; return its MAGI-1 settings.

    Raises:
        ConfigError: no MAGI-1 checkpoint, a base model, or as
            :func:`magi_world.calibration.smoothquant.check_quantisable`.
    """
    magi1 = config.magi1
    if magi1 is None:
        raise ConfigError("only MAGI-1 checkpoints have an FP8 form")
    if not magi1.distill:
        raise ConfigError(
            "a base model has no FP8 form: the published layout allows fp8_quant only with "
            "cfg_number 1, which is that of distilled models"
        )
    check_quantisable(dit, alpha)
    return magi1


def calibrate(
    world: World,
    videos: Sequence[CalibrationVideo],
    *,
    alpha: float = ALPHA,
    num_frames: int | None = None,
    checked: int = 2,
    say: Callable[[str], None] = lambda text: None,
) -> Calibration:
    """Quantise a distilled checkpoint and measure what that costs.

    Args:
        world: the checkpoint, in float32 or bfloat16.
        videos: the calibration set; peaks are those over all their forwards.
        alpha: migration strength of SmoothQuant.
        num_frames: new frames of each video; None takes the checkpoint's own.
        checked: of the videos, the first so many are generated again for the errors.
        say: told what is going on.

    Raises:
        ConfigError: as :func:`check_calibratable`, or no video to observe or check.
        PromptError: a prompt that the checkpoint cannot use.
    """
    magi1 = check_calibratable(world.config, world.dit, alpha)
    if not videos or checked < 1:
        raise ConfigError(f"{len(videos)} videos, {checked} to check: at least one is needed")
    for video in videos:
        world.check_prompt(video.prompt)
    frames = magi1.num_frames if num_frames is None else num_frames

    references: list[Tensor] = []
    with observed(world.dit) as peaks:
        for index, video in enumerate(videos):
            say(f"observing video {index + 1} of {len(videos)}, {video.num_steps} steps")
            latents = _run(world, video, frames)
            if index < checked:
                references.append(latents)
    say("quantising")
    quantised = fp8_world(world, quantise_dit(world.dit, peaks, alpha))
    ends = []
    with compared(world.dit, quantised.dit) as errors:
        for index, reference in enumerate(references):
            say(f"checking video {index + 1} of {len(references)}")
            again = _run(world, videos[index], frames)
            assert again.shape == reference.shape
    for video, reference in zip(videos, references, strict=False):
        ends.append(relative_error(_run(quantised, video, frames), reference))
    return Calibration(world=quantised, layers=by_layer(errors), latents=ends, alpha=alpha)


def fp8_world(world: World, dit: VideoDiT) -> World:
    """The same checkpoint with a quantised DiT."""
    assert world.config.magi1 is not None
    config = replace(world.config, magi1=replace(world.config.magi1, fp8_quant=True))
    text = None if world.text_folder is None else world.text
    quantised = World(magi1_card(f"{world.name}_fp8", config), text=text, meta=True)  # type: ignore[arg-type]
    quantised.dit, quantised.vae = dit, world.vae
    quantised.special_tokens = world.special_tokens
    return quantised


def read_prompts(path: Path) -> list[str]:
    """Read prompts, one a line; empty lines and lines that begin with # do not count.

    Raises:
        ConfigError: the file is absent, no text, or without a prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompts {path} cannot be read: {error}") from None
    prompts = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not prompts:
        raise ConfigError(f"prompts {path} holds no prompt")
    return prompts


@torch.no_grad()
def _run(world: World, video: CalibrationVideo, num_frames: int) -> Tensor:
    """Generate a video; return its latents `[C, T, h, w]`."""
    prefix = None
    if video.image is not None:
        prefix = world.encode(video.image[None, None])[0]
    settings = GenerateSettings(num_steps=video.num_steps, seed=video.seed)
    chunks = generate(world, video.prompt, num_frames=num_frames, prefix=prefix, settings=settings)
    return torch.cat([chunk.latents.float().cpu() for chunk in chunks], dim=1)
