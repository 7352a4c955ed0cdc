"""A closed-loop step on buffers that never move: what a compiler and a CUDA graph need.

The ordinary step of :mod:`magi_world.sampling.sampler` makes new tensors and new masks for every
chunk. Here noise, keys and values of the prompts, rotary table, cache rows and masks are copied
into fixed buffers first, and everything behind that reads only those. With ``compile`` the pass of
the DiT is compiled once; with ``cuda_graph`` the whole loop, its clean pass and the decode are
captured once and replayed. The outcome head and its draw stay outside.

Shape suffixes: B slots, n tokens per chunk, T = B * n, Y caption tokens of a slot's place,
K groups, D head width, C channels, P latent frames, H rows, W columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from magi_world.compiler import cpp_compiler
from magi_world.errors import ConfigError
from magi_world.kernels.attention import AttnSlices, DeviceSlices, default_backend
from magi_world.kernels.attention.triton_ops import SMALLEST_SIDE
from magi_world.kernels.rope.write import CacheRows
from magi_world.models.dit import CaptionKV, ChunkInputs, DiTOutput
from magi_world.models.layers import KVMemory
from magi_world.offload.kv_rows import DeviceRows
from magi_world.sampling import schedule
from magi_world.sampling.chunk import Chunk
from magi_world.sampling.guidance import PassKind, plan_passes
from magi_world.sampling.guided import ChunkView
from magi_world.sampling.kv_cache import KVCache

if TYPE_CHECKING:
    from magi_world.sampling.sampler import ChunkSampler, Places

_WARM_UP = 3  # runs before a capture: they compile kernels and fill the allocator


class _Pass(NamedTuple):
    """One pass of a denoising step."""

    kind: PassKind
    weight: float


class _Memory(KVMemory):
    """The cache with the rows of the scratch places in a buffer."""

    def __init__(self, cache: KVCache, rows: Tensor) -> None:
        self.keys_LRKD, self.values_LRKD, self.rows = cache.keys_LRKD, cache.values_LRKD, rows

    def extend(self, layer: int, k_TKD: Tensor, v_TKD: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = self.keys_LRKD[layer], self.values_LRKD[layer]
        keys.index_copy_(0, self.rows, k_TKD)
        values.index_copy_(0, self.rows, v_TKD)
        return keys, values

    def place(self, layer: int) -> CacheRows:
        return CacheRows(self.keys_LRKD[layer], self.values_LRKD[layer], self.rows)


@dataclass(eq=False)
class _Captions:
    """Keys and values that the slots read, each slot in its own place of the rows."""

    kv: CaptionKV
    cross: DeviceSlices
    dropped: Tensor


class FixedStep:
    """Makes the next chunk of all slots of a rollout from buffers of fixed size."""

    def __init__(
        self, sampler: "ChunkSampler", cache: KVCache, *, compile: bool, cuda_graph: bool
    ) -> None:
        """Reserve the buffers.

        Args:
            sampler: how chunks are made.
            cache: of all slots; its tensors stay where they are.
            compile: compile the pass of the DiT.
            cuda_graph: capture the step when it is first made.

        Raises:
            ConfigError: both, or ``cuda_graph`` without a CUDA device, or ``compile`` on a CPU
                without a C++ compiler, or keys and values in host memory.
        """
        world = sampler.world
        if compile and cuda_graph:
            raise ConfigError("compile and cuda_graph exclude each other: take one")
        if cuda_graph and world.device.type != "cuda":
            raise ConfigError(
                f"cuda_graph=True needs a CUDA device, the world is on {world.device}"
            )
        if compile and world.device.type == "cpu" and not cpp_compiler():
            raise ConfigError(
                "compile=True on a CPU needs a C++ compiler: g++, clang++ or the one that CXX names"
            )
        if not isinstance(cache.rows, DeviceRows):
            raise ConfigError("compile and cuda_graph need the KV cache on the device")
        self.world, self.sampler, self.cache = world, sampler, cache
        self.captured = cuda_graph
        self._graph: torch.cuda.CUDAGraph | None = None
        self._results: tuple[Tensor, Tensor, Tensor] | None = None
        B, n = cache.slots, cache.tokens
        self._plan()
        with torch.inference_mode(False):
            self._buffers(B, n)
        self._pass: Callable[..., DiTOutput] = self._forward
        if compile:
            self._pass = torch.compile(self._forward, fullgraph=True, dynamic=False)

    def _plan(self) -> None:
        """Which passes every step needs; they depend on nothing but the grid."""
        sampler, B = self.sampler, self.cache.slots
        nothing = sampler._null_caption()
        views = tuple(
            ChunkView(time=0, caption=nothing, null=nothing, slot=slot, cleanest=True)
            for slot in range(B)
        )
        guidance = sampler.model.guidance
        self._passes = [
            [_Pass(one.kind, one.weights[0]) for one in plan_passes(views, [t] * B, guidance)]
            for t in sampler.grid[:-1]
        ]

    def _buffers(self, B: int, n: int) -> None:
        world, cache, device = self.world, self.cache, self.world.device
        dit = world.dit
        self.noise = torch.zeros(B, *world.config.latent_shape, dtype=torch.float32, device=device)
        self.previous = torch.zeros_like(self.noise) if dit.config.previous_chunk else None
        angles = (B * n, 3 * (dit.config.kv_channels // 8))
        self.rotary = (
            torch.zeros(angles, dtype=torch.float32, device=device),
            torch.zeros(angles, dtype=torch.float32, device=device),
        )
        start = torch.zeros(B, dtype=torch.int64, device=device)
        with torch.no_grad():  # of a pass that has no place in time
            self.rotary_alone = dit.rotary(start, self.sampler.model.size)
        self.memory = _Memory(cache, torch.zeros(B * n, dtype=torch.int64, device=device))
        rows = cache.keys_LRKD.shape[1]
        widths = {*self.sampler._widths, self._clean_width}
        self.attend = {width: self._slices(B, n, rows, 2 * B) for width in widths}
        self.alone = AttnSlices.repeated(B, n, n)
        self.captions = {True: self._caption_room(B), False: self._caption_room(B)}
        ones = torch.ones(B, dtype=torch.float32, device=device)
        self.times = [ones * t for t in (*self.sampler.grid[:-1], self.sampler.config.clean_t)]
        features = [self.sampler.config.step_feature(i) for i in self.sampler._intervals]
        self.dt = [None if dt is None else ones * dt for dt in features]

    @property
    def _clean_width(self) -> int | None:
        config = self.sampler.config
        return schedule.clean_kv_width(config.kv_ranges, config.clean_kv_range)

    def _slices(self, B: int, n: int, keys: int, slices: int) -> DeviceSlices:
        # a slot sees its own part of the keys only, in two stretches at most
        side = SMALLEST_SIDE
        tiles = 2 * B * (n // side + 2) * (keys // B // side + 2)
        return DeviceSlices(
            num_queries=B * n, num_keys=keys, max_slices=slices, max_tiles=tiles,
            device=self.world.device,
        )  # fmt: skip

    def _caption_room(self, B: int) -> _Captions:
        dit, device = self.world.dit, self.world.device
        Y, config = dit.config.caption_max_length, dit.config
        shape = (B * Y, config.num_query_groups, config.kv_channels)
        kv = [
            (torch.zeros(shape, dtype=dit.block_dtype, device=device),
             torch.zeros(shape, dtype=dit.block_dtype, device=device))
            for _ in range(config.num_layers)
        ]  # fmt: skip
        dropped = torch.zeros(B, dtype=torch.bool, device=device)
        return _Captions(kv, self._slices(B, self.cache.tokens, B * Y, B), dropped)

    # ---------------------------------------------------------------- one step

    def step(self, noise: Tensor, prompts: Sequence[str], places: "Places") -> Chunk:
        """Make and judge the next chunk of every slot; the caller advances the cache.

        Args:
            noise: `[B, C, P, H, W]`.
            prompts: one a slot.
            places: of all slots, in their order.
        """
        self._fill(noise, prompts, places)
        if not self.captured:
            latents, hidden, frames = self._run(decode=False)
        else:
            if self._graph is None:
                self._capture()
            assert self._graph is not None and self._results is not None
            self._graph.replay()
            latents, hidden, frames = (x.clone() for x in self._results)
        if self.previous is not None:
            self.cache.finish(list(places.slots), latents)
        chunk = self.world.judge(latents, hidden, prompts)
        if self.captured:
            chunk._decoded.append(frames)
        return chunk

    def _fill(self, noise: Tensor, prompts: Sequence[str], places: "Places") -> None:
        """Copy everything that changes from step to step into the buffers."""
        world, cache, sampler = self.world, self.cache, self.sampler
        slots = list(places.slots)
        self.noise.copy_(noise)
        if self.previous is not None:
            self.previous.copy_(cache.newest[slots])
        device = world.device
        first = torch.tensor(places.times, device=device) * sampler.model.size[0]
        for target, source in zip(
            self.rotary, world.dit.rotary(first, sampler.model.size), strict=True
        ):
            target.copy_(source)
        for width, mask in self.attend.items():
            mask.fill(cache.open([(slot, 0, width) for slot in slots]))
        assert isinstance(cache.rows, DeviceRows)
        self.memory.rows.copy_(cache.rows.place(0).rows)
        self._fill_captions(self.captions[True], [world.caption(prompt) for prompt in prompts])
        self.captions[True].dropped.fill_(False)
        self._fill_captions(self.captions[False], [world.caption(None)] * len(prompts))
        self.captions[False].dropped.fill_(True)

    def _fill_captions(self, room: _Captions, captions: list[CaptionKV]) -> None:
        n, Y = self.cache.tokens, self.world.dit.config.caption_max_length
        rows = []
        for b, caption in enumerate(captions):
            length = caption[0][0].shape[0]
            rows.append((b * n, (b + 1) * n, b * Y, b * Y + length, 0))
            for targets, sources in zip(room.kv, caption, strict=True):
                for target, source in zip(targets, sources, strict=True):
                    target[b * Y : b * Y + length].copy_(source)
        mask = tuple(rows)
        if room.cross.slices.rows != mask:
            room.cross.fill(AttnSlices.from_list(mask))

    def _run(self, *, decode: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Latents, hidden states and frames (none without ``decode``), from the buffers alone."""
        sampler, grid = self.sampler, self.sampler.grid
        x = self.noise
        for k, passes in enumerate(self._passes):
            total: Tensor | None = None
            for kind, weight in passes:
                out = self._call(kind, x, k, sampler._widths[k]).velocity
                if weight == 1 and total is None:
                    total = out
                    continue
                total = torch.zeros_like(x) if total is None else total
                total = total + out * weight
            if total is not None:
                x = x + total * (grid[k + 1] - grid[k])
        hidden = self._call(sampler.model.guidance.writer, x, -1, self._clean_width).hidden
        frames = self.world.decode(x) if decode else x[:0]
        return x, hidden, frames

    def _call(self, kind: PassKind, x: Tensor, k: int, width: int | None) -> DiTOutput:
        """A pass at step k, or the clean pass for k = -1."""
        config = self.sampler.config
        prompted = kind.prompted and not (k == -1 and config.clean_null_caption)
        room = self.captions[prompted]
        dropped = room.dropped
        if kind.prompted and not prompted and not config.clean_dropped:
            dropped = self.captions[True].dropped
        history = kind.has_history
        previous = self.previous
        if previous is not None and not history:
            previous = torch.zeros_like(previous)
        return self._pass(
            x, self.times[k], self.dt[0 if k == -1 else k], dropped,
            self.rotary if history else self.rotary_alone, room.kv, room.cross,
            self.attend[width] if history else self.alone, previous,
            self.memory if history else None,
        )  # fmt: skip

    def _forward(
        self,
        x: Tensor,
        t: Tensor,
        dt: Tensor | None,
        dropped: Tensor,
        rotary: tuple[Tensor, Tensor],
        caption: CaptionKV,
        cross: DeviceSlices,
        attend: AttnSlices | DeviceSlices,
        previous: Tensor | None,
        memory: _Memory | None,
    ) -> DiTOutput:
        inputs = ChunkInputs(
            x=x, t=t, dropped=dropped, rotary=rotary, caption=caption, attend=attend, cross=cross,
            dt=dt, previous=previous,
        )  # fmt: skip
        output: DiTOutput = self.world.dit(inputs, memory)
        return output

    def _capture(self) -> None:
        """Capture the step; a pass writes scratch places only, so runs before do no harm."""
        # the other kernels for GPUs read the mask on the host: it would be frozen in the graph
        with default_backend("triton"):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self._run(decode=True)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._results = self._run(decode=True)
            self._graph = graph
