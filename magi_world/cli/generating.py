"""What the verb `generate` does: check everything, then generate chunk after chunk into a file."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magi_world.checkpoints.magi1_world import Magi1Parts, prompt_encoder
from magi_world.cli.generate_request import PUBLISHED_PREFIX, Request
from magi_world.cli.measuring import parse_counts
from magi_world.cli.output import say
from magi_world.cli.prompt_file import PromptFile
from magi_world.config import TextConfig, WorldConfig
from magi_world.errors import ConfigError, MediaError, PromptError
from magi_world.evaluation.bench import resident_bytes
from magi_world.media.reading import Fit, read_image, read_video
from magi_world.media.writing import VideoWriter
from magi_world.models.text import check_prompt
from magi_world.offload.placement import place
from magi_world.placement import check_place
from magi_world.planning.checks import check_memory, check_packages, check_video_disk
from magi_world.planning.model import Model, find_model, resized
from magi_world.planning.plan import PlanRequest, make_plan
from magi_world.sampling.generate import (
    ChunkPrompt,
    GenerateSettings,
    Generation,
    generate,
)
from magi_world.sampling.layout import VideoLayout, video_layout
from magi_world.sampling.settings import SamplerConfig, sampler_config
from magi_world.size import parse_size
from magi_world.text.encoder import T5PromptEncoder
from magi_world.world import World, load

Compat = Literal["magi-1"] | None

_TEXT_PACKAGES = ("transformers", "sentencepiece")
_CLEANER_PACKAGES = ("diffusers", "transformers", "ftfy", "bs4")


class Job:
    """One video: the constructor checks, `run` generates."""

    def __init__(self, request: Request) -> None:
        """Check what can be checked without weights. Nothing is written.

        Raises:
            MagiWorldError: what is wrong, in one line.
        """
        self.request = request
        self.parts = request.parts()
        self.compat: Compat = "magi-1" if request.compat else None
        check_place(request.device, request.dtype)
        self.device = torch.device(request.device or "cpu")
        file = None if request.prompts is None else PromptFile.read(request.prompts)
        size = None if request.size is None else parse_size(request.size)
        self.model = find_model(request.model, self.parts)
        self.config = resized(self.model.config, size)
        if self.config.magi1 is None and self.parts != Magi1Parts():
            raise ConfigError(f"{self.model.name} is no MAGI-1 checkpoint: it has no such parts")
        self.settings = self._settings(file)
        sampler = sampler_config(self.config, self.settings)
        config = self.config
        self.writer = VideoWriter(
            request.out, fps=config.fps, height=config.height, width=config.width
        )
        self.frames = self._read()
        prefix = 0 if self.frames is None else -(-len(self.frames) // config.vae.patch_length)
        self.layout = self._layout(sampler, file, prefix)
        # in front of the prompts: a slip in a second of the file may ask for a list of any length
        check_video_disk(
            request.out, frames=self.num_frames, height=config.height, width=config.width
        )
        self.prompts = self._prompts(file)
        unread = self._check_prompts()
        self._check_memory(unread)

    @property
    def num_frames(self) -> int:
        """Frames of the file; in compat mode a few less come out."""
        assert self.layout.num_chunks is not None  # the verb makes no endless videos
        return self.layout.frames(self.layout.num_chunks - 1)[1]

    # ---------------------------------------------------------------- checks

    def _settings(self, file: PromptFile | None) -> GenerateSettings:
        request = self.request
        ranges = None if request.kv_range is None else parse_counts(request.kv_range, "--kv-range")
        settings = GenerateSettings(
            num_steps=request.num_steps,
            window=request.window,
            kv_ranges=ranges,
            seed=request.seed,
            compat=self.compat,
            kv_on_host="kv" in request.offload,
        )
        own = sampler_config(self.config, settings)
        asked = 0 if file is None else file.max_kv_range or 0
        if asked > own.own_kv_range and own.kv_ranges:
            return replace(settings, max_kv_range=asked)
        return settings

    def _read(self) -> NDArray[np.uint8] | None:
        """Frames uint8 `[T, H, W, 3]` that come before, T a multiple of a latent frame's or 1."""
        request, config, fit = self.request, self.config, cast(Fit, self.request.fit)
        if request.image is not None:
            return read_image(request.image, config.height, config.width, fit=fit)[None]
        if request.video is None:
            return None
        published = self.compat is not None
        most = PUBLISHED_PREFIX if published else None
        if request.video_seconds is not None:
            most = max(1, round(request.video_seconds * config.fps))
        frames = read_video(
            request.video,
            config.height,
            config.width,
            config.fps,
            fit=fit,
            keep="first" if published else "last",
            max_frames=most,
        )
        per_latent = config.vae.patch_length
        if len(frames) < per_latent:
            raise MediaError(
                f"{request.video} has {len(frames)} frames at {config.fps} a second, "
                f"{per_latent} are needed"
            )
        # a latent frame is made of whole groups; what is nearest to the new frames stays
        return frames[len(frames) % per_latent :]

    def _layout(self, sampler: SamplerConfig, file: PromptFile | None, prefix: int) -> VideoLayout:
        config, seconds = self.config, self.request.seconds
        image = self.request.image is not None
        num_frames: int | None = None
        generated: int | None = None
        if seconds is not None:
            num_frames = round(seconds * config.fps)
            if num_frames < 1:
                raise ConfigError(f"--seconds {seconds} is less than one frame")
        elif file is not None and file.seconds is None:
            generated = len(file.prompts)
        else:
            magi1 = config.magi1
            num_frames = config.chunk_frames if magi1 is None else magi1.num_frames
            if file is not None and file.seconds is not None:  # the last prompt has a chunk too
                last = round(file.seconds[-1] * config.fps) + config.chunk_frames
                num_frames = max(num_frames, last)
        arguments: dict[str, Any] = {
            "chunk_width": sampler.chunk_width,
            "frames_per_latent": config.vae.patch_length,
            "prefix_latent_frames": prefix,
            "from_image": image,
            "compat": self.compat,
        }
        if generated is None:
            return video_layout(num_frames, **arguments)
        # whole chunks, as many as there are lines
        layout = video_layout(None, num_generated=generated, **{**arguments, "compat": None})
        if self.compat is None:
            return layout
        begun = 0 if image else prefix % sampler.chunk_width
        latents = generated * sampler.chunk_width - begun - (1 if image else 0)
        return video_layout(max(1, latents) * config.vae.patch_length, **arguments)

    def _prompts(self, file: PromptFile | None) -> str | list[ChunkPrompt]:
        if file is None:
            assert self.request.prompt is not None  # Request refuses to be without both
            return self.request.prompt
        starts = [first / self.config.fps for first, _ in self.layout.chunk_frames()]
        unused = file.unused(starts)
        if unused:
            lines = f"line {unused[0]} holds" if len(unused) == 1 else f"{len(unused)} lines hold"
            say(f"{file.path}: {lines} for no chunk, the video has {len(starts)} chunks")
        if file.seconds is None and len(file.prompts) < len(starts):
            say(f"{file.path}: the last line holds from chunk {len(file.prompts)} to {len(starts)}")
        return file.for_chunks(starts)

    def _texts(self) -> list[str]:
        if isinstance(self.prompts, str):
            return [self.prompts]
        return list(dict.fromkeys(prompt.text for prompt in self.prompts))

    def _check_prompts(self) -> bool:
        """Check prompts and packages; say whether the text encoder's weights will be read."""
        model, texts = self.model, self._texts()
        if model.checkpoint is None:
            if not isinstance(model.config.text, TextConfig):
                raise PromptError(f"{model.name} has no text encoder")
            for text in texts:
                check_prompt(text, model.config.text.max_bytes)
            return False
        encoder = prompt_encoder(model.checkpoint, model.config, self.parts, self.device)
        if encoder is None:
            raise PromptError(f"{model.name} was found without a text encoder: give --t5")
        if self.compat is not None:
            check_packages(_CLEANER_PACKAGES, "magi1", "the published prompt cleaner")
        for text in texts:
            encoder.check(text, self.compat)
        unread = not _all_cached(encoder, texts, self.compat)
        if unread:
            check_packages(_TEXT_PACKAGES, "magi1", "the text encoder")
        return unread

    def _check_memory(self, unread: bool) -> None:
        """Check the device and, where parts lie on the host, the host."""
        request, plan = self.request, make_plan(self.config, self._plan_request())
        device, host = plan.memory.total, plan.host_bytes
        if "idle" in request.offload:
            host += plan.memory.vae
        text = _text_bytes(self.model) if unread else 0
        if self.device.type == "cpu":
            check_memory(device + host + text, self.device, "model, cache and text encoder")
            return
        check_memory(device, self.device, "model and cache")
        check_memory(host + text, torch.device("cpu"), "what lies in host memory")

    def _plan_request(self) -> PlanRequest:
        settings, offload = self.settings, self.request.offload
        dtype = self.request.dtype
        if dtype is None and self.device.type == "cpu":
            dtype = "float32"
        ranges = settings.kv_ranges
        sampler = sampler_config(self.config, settings)
        if not sampler.kv_ranges or settings.max_kv_range is not None:
            chunks = self.layout.num_chunks or 1
            ranges = (settings.max_kv_range or chunks,)
        return PlanRequest(
            window=settings.window,
            num_steps=settings.num_steps,
            kv_ranges=ranges,
            dtype=dtype,
            offload_kv="kv" in offload,
            offload_layers="layers" in offload,
        )

    # ---------------------------------------------------------------- work

    def run(self) -> dict[str, Any]:
        """Generate the video; return what was made as plain data.

        Ctrl-C ends the file behind the last finished chunk and is reported as `stopped`.
        """
        stopped = False
        seconds: list[float] = []
        memory: list[int] = []
        video: Generation | None = None
        with self.writer as writer:
            try:
                video = self._begin()
                _write(video, writer, self.config, self.device, seconds, memory)
            except KeyboardInterrupt:
                stopped = True
        if stopped:
            kept = f"{self.request.out} holds them" if writer.num_frames else "there is no file"
            say(f"stopped after {len(seconds)} chunks: {kept}")
        config = self.config
        return {
            "out": str(self.request.out) if writer.num_frames else None,
            "frames": writer.num_frames,
            "seconds": writer.num_frames / config.fps,
            "fps": config.fps,
            "height": config.height,
            "width": config.width,
            "chunks": len(seconds),
            "stopped": stopped,
            "chunk_seconds": seconds,
            "chunk_memory_bytes": memory,
            "chunk_passes": 0 if video is None else video.passes.run,
            "chunk_passes_published": 0 if video is None else video.passes.published,
            "flops": 0 if video is None else video.passes.flops,
        }

    def _begin(self) -> Generation:
        request = self.request
        moved = set(request.offload) & {"layers", "idle"}
        world = load(
            request.model,
            device="cpu" if moved else request.device,
            dtype=request.dtype,
            parts=self.parts,
        )
        world = world.resized(self.config.height, self.config.width)
        if moved:
            place(world, self.device, layers="layers" in moved, idle="idle" in moved)
        return generate(
            world,
            self.prompts,
            num_frames=self.layout.num_frames,
            prefix=self._prefix(world),
            from_image=request.image is not None,
            settings=self.settings,
        )

    def _prefix(self, world: World) -> Tensor | None:
        """Latents `[C, T, h, w]` of what comes before."""
        if self.frames is None:
            return None
        latents = world.encode(torch.from_numpy(self.frames)[None], compat=self.compat)[0]
        self.frames = None  # may be large
        return latents


def _write(
    video: Generation,
    writer: VideoWriter,
    config: WorldConfig,
    device: torch.device,
    seconds: list[float],
    memory: list[int],
) -> None:
    """Write the chunks, note what each took and say how much time is left.

    A chunk is noted before it is spoken of, so that an interrupt finds both or neither.
    """
    work = _work(video)
    say(
        f"{len(work)} chunks of {config.chunk_frames} frames, {config.height}x{config.width}, "
        f"{video.config.num_steps} steps, window {video.config.window}; the first chunk comes "
        f"after {work[0] / work[-1]:.0%} of the work"
    )
    begin = last = time.perf_counter()
    for done, chunk in zip(work, video, strict=False):
        writer.append(chunk.frames.cpu().numpy())
        now = time.perf_counter()
        seconds.append(now - last)
        memory.append(_memory(device))
        left = (now - begin) * (work[-1] - done) / done
        say(
            f"chunk {chunk.index + 1} of {len(work)}: {writer.num_frames / config.fps:.1f} s of "
            f"video, {now - last:.1f} s for this chunk, {_clock(left)} left"
        )
        last = now


def _memory(device: torch.device) -> int:
    """Most bytes allocated on a card since the last call; on a CPU what the process holds now."""
    if device.type != "cuda":
        return resident_bytes()
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def _work(video: Generation) -> list[int]:
    """Chunks denoised for a step until each chunk is finished: what time goes with."""
    steps = itertools.accumulate(
        ((step.stage.stop - step.stage.first, step.emitted) for step in video.sampler.plan.steps()),
        lambda total, step: (total[0] + step[0], step[1]),
    )
    return [done for done, emitted in steps if emitted is not None]


def _clock(seconds: float) -> str:
    """A duration as hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _all_cached(encoder: T5PromptEncoder, texts: Sequence[str], compat: Compat) -> bool:
    cache = encoder.cache
    return cache is not None and all(
        cache.path(encoder.clean(text, compat)).is_file() for text in texts
    )


def _text_bytes(model: Model) -> int:
    """Weights of the text encoder as they lie on disk."""
    from magi_world.models.t5 import weight_files

    folder = None if model.checkpoint is None else model.checkpoint.text_folder
    return 0 if folder is None else sum(file.stat().st_size for file in weight_files(folder))
