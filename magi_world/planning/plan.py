"""What generating with a model takes: arithmetic of a chunk, memory of a device, and does it fit.

Counts are those of the steady state: a video long enough that every window is full and every
chunk sees as many chunks as its KV range allows.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch

from magi_world.config import WorldConfig
from magi_world.errors import ConfigError
from magi_world.planning import memory
from magi_world.planning.steady import PROMPT_TOKENS, SteadyState
from magi_world.sampling.settings import GenerateSettings

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """How a model is going to be run; None takes what its configuration says.

    Raises:
        ConfigError: a value that is not allowed.
    """

    window: int | None = None
    """chunks denoised together"""
    num_steps: int | None = None
    """denoising steps per chunk"""
    cfg_number: int | None = None
    """model passes of one guided velocity, 1 or 3"""
    kv_ranges: tuple[int, ...] | None = None
    """KV range per noise stage, the noisiest first"""
    dtype: str | None = None
    """float32 or bfloat16"""
    gpus: int = 1
    """devices that share a video by context parallelism"""
    pipeline: int = 1
    """groups of devices that share the layers"""
    offload_kv: bool = False
    """the cache lies in host memory, two layers of it on the device"""
    offload_layers: bool = False
    """the layers lie in host memory, two of them on the device"""

    def __post_init__(self) -> None:
        for name in ("window", "num_steps", "gpus", "pipeline"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} {value}: 1 or more is needed")
        if self.cfg_number not in (None, 1, 3):
            raise ConfigError(f"cfg {self.cfg_number}: the number of passes is 1 or 3")
        if self.dtype not in (None, *_DTYPES):
            raise ConfigError(f"dtype {self.dtype!r} is not one of {sorted(_DTYPES)}")
        if self.gpus % self.pipeline:
            raise ConfigError(f"{self.gpus} GPUs cannot form {self.pipeline} equal groups")


@dataclass(frozen=True, kw_only=True)
class DeviceMemory:
    """Bytes on one device."""

    weights: int
    """of the DiT"""
    kv_cache: int
    captions: int
    """keys and values of the prompts in the window and of the null caption"""
    latents: int
    """latents and velocities of the window, rotary tables"""
    activations: int
    """what a forward of the DiT, or the VAE behind it, holds at its peak"""
    vae: int
    """weights of the VAE"""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(asdict(self).values())


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a model takes."""

    parameters: int
    """of the DiT"""
    vae_parameters: int
    height: int
    width: int
    fps: int
    tokens_per_chunk: int
    frames_per_chunk: int
    window: int
    num_steps: int
    cfg_number: int
    kv_ranges: tuple[int, ...]
    dtype: str
    gpus: int
    pipeline: int
    chunk_passes: int
    """forwards of a chunk that a finished chunk costs, clean pass included"""
    chunk_passes_published: int
    """the same with every pass that the published code runs"""
    flops_per_chunk: int
    """on all devices together"""
    flops_per_chunk_all_passes: int
    """without leaving out passes that cannot change anything"""
    kv_bytes_per_chunk: int
    """in all layers, on all devices together"""
    kv_chunks: int
    """chunks that the cache has room for: (largest KV range - 1) + window"""
    memory: DeviceMemory
    """on each device"""
    host_bytes: int
    """in host memory: what was moved out of the device"""

    def fits(self, device_bytes: int) -> bool:
        """Whether a device of this size is enough."""
        return self.memory.total <= device_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the total of the memory in it."""
        values = asdict(self)
        values["kv_ranges"] = list(self.kv_ranges)
        values["memory"]["total"] = self.memory.total
        return values


def make_plan(config: WorldConfig, request: PlanRequest | None = None) -> Plan:
    """Count what a model takes.

    Raises:
        ConfigError: steps that window or KV ranges do not divide, more devices than key-value
            heads allow, or layers that the groups do not divide.
    """
    request = PlanRequest() if request is None else request
    settings = GenerateSettings(
        window=request.window, num_steps=request.num_steps, kv_ranges=request.kv_ranges
    )
    run = SteadyState.of(config, settings, cfg_number=request.cfg_number)
    sampler = run.sampler
    dit, n = config.dit, config.tokens_per_chunk
    dtype_name = request.dtype or dit.params_dtype
    dtype = _DTYPES[dtype_name]
    fp8 = config.magi1 is not None and config.magi1.fp8_quant
    weights = memory.dit_weights(dit, dtype, fp8=fp8)
    vae = memory.vae_weights(config.vae)

    cp = request.gpus // request.pipeline
    shared = _share(dit.num_query_groups, cp, dit.num_layers, request.pipeline)
    kv_device = -(-memory.kv_bytes(dit, n * run.kv_chunks, dtype) // shared)
    layers = weights.nbytes // request.pipeline
    host = 0
    if request.offload_kv:
        host, kv_device = host + kv_device, -(-2 * kv_device // dit.num_layers)
    if request.offload_layers:
        moved = weights.nbytes - 2 * weights.nbytes // dit.num_layers
        host, layers = host + moved, layers - moved
    forward = memory.activation_bytes(
        dit, chunks=sampler.window, tokens=-(-n // cp), seen=max(sampler.kv_ranges), dtype=dtype
    )
    decode = memory.vae_bytes(config.vae, config.chunk_frames, config.height, config.width)
    captions = PROMPT_TOKENS * sampler.window + config.sampling.null_prompt_tokens
    return Plan(
        parameters=weights.parameters,
        vae_parameters=vae.parameters,
        height=config.height,
        width=config.width,
        fps=config.fps,
        tokens_per_chunk=n,
        frames_per_chunk=config.chunk_frames,
        window=sampler.window,
        num_steps=sampler.num_steps,
        cfg_number=run.cfg_number,
        kv_ranges=sampler.kv_ranges,
        dtype=dtype_name,
        gpus=request.gpus,
        pipeline=request.pipeline,
        chunk_passes=run.chunk_passes(skip=True) + 1,
        chunk_passes_published=run.chunk_passes(skip=False) + run.clean_passes_published,
        flops_per_chunk=run.flops(dit, n, skip=True),
        flops_per_chunk_all_passes=run.flops(dit, n, skip=False),
        kv_bytes_per_chunk=memory.kv_bytes(dit, n, dtype),
        kv_chunks=run.kv_chunks,
        memory=DeviceMemory(
            weights=layers,
            kv_cache=kv_device,
            captions=memory.caption_bytes(dit, captions, dtype) // request.pipeline,
            latents=memory.window_bytes(
                dit, window=sampler.window, tokens=n, cfg_number=run.cfg_number
            ),
            activations=max(forward, decode),
            vae=vae.nbytes,
        ),
        host_bytes=host,
    )


def _share(groups: int, context: int, layers: int, pipeline: int) -> int:
    """By how much the cache of a device is smaller: its key-value heads and its layers."""
    if layers % pipeline:
        raise ConfigError(f"{layers} layers cannot form {pipeline} equal groups")
    if groups % context and context % groups:
        raise ConfigError(
            f"{context} devices in a group: {groups} key-value heads allow divisors and multiples "
            f"of {groups}"
        )
    return min(context, groups) * pipeline
