"""Drivers of guided calls, whole videos and pixels to pixels (sections 4 to 7)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from magi_world.magi1_config import Magi1Config
from magi_world.models.dit import VideoDiT
from magi_world.models.pixels import to_frames, to_pixels
from magi_world.models.vae_tiling import Tiling, tiled_decode, tiled_encode
from magi_world.sampling import schedule
from magi_world.sampling.captions import Caption
from magi_world.sampling.guidance import PassKind
from magi_world.sampling.guided import ChunkView, GuidedModel
from magi_world.sampling.kv_cache import KVCache
from magi_world.sampling.pipeline import DenoiseStep, ModelCall
from magi_world.sampling.settings import (
    GenerateSettings,
    SamplerConfig,
    Savings,
    magi1_sampler_config,
)
from magi_world.sampling.window import ChunkSource, WindowSampler
from magi_world.text.special_tokens import NEGATIVE, SpecialTokens
from tests.golden.cases import Case, Computed
from tests.golden.prompt_driver import golden_name, token_options
from tests.golden.vae_driver import load_vae

_NULL_TOKENS = 50  # valid rows of the null caption
_PROBES = 8

LoadDiT = Callable[[Case], VideoDiT]


def sampler_settings(meta: Mapping[str, Any]) -> SamplerConfig:
    """The configuration of a case, without the start-up check that some break on purpose."""
    runtime, engine = meta["config"]["runtime_config"], meta["config"]["engine_config"]
    magi1 = Magi1Config(
        num_steps=runtime["num_steps"],
        window=runtime["window_size"],
        cfg_number=runtime["cfg_number"],
        cfg_t_range=tuple(runtime["cfg_t_range"]),
        prev_chunk_scales=tuple(runtime["prev_chunk_scales"]),
        text_scales=tuple(runtime["text_scales"]),
        noise2clean_kvrange=tuple(runtime["noise2clean_kvrange"]),
        clean_chunk_kvrange=runtime["clean_chunk_kvrange"],
        clean_t=runtime["clean_t"],
        distill=engine["distill"],
        fp8_quant=engine["fp8_quant"],
        near_clean_threshold=engine["distill_nearly_clean_chunk_threshold"],
        shortcut_mode=engine["shortcut_mode"],
        chunk_width=runtime["chunk_width"],
    )
    share = float(meta["environment"].get("prev_chunks_scale", 0.7))
    # long prefixes are run whole, so that what the model returned for them can be compared
    settings = GenerateSettings(
        compat="magi-1", near_clean_share=share, savings=Savings(unseen_prefix=False)
    )
    return magi1_sampler_config(magi1, settings)


# ------------------------------------------------------------------------ one guided call


def run_dispatch(case: Case, load_dit: LoadDiT) -> Computed:
    """Guided calls, alone or sharing a cache (section 4)."""
    dit, meta, inputs = load_dit(case), case.meta, case.inputs()
    config = sampler_settings(meta)
    calls = meta.get("calls", [meta])
    last = max(call["slice_point"] + call["denoising_range_num"] for call in calls)
    x = inputs["x"] if "calls" not in meta else inputs["call0.x"]
    n = meta["tokens_per_chunk"]
    cache = KVCache(
        slots=1, places=last, tokens=n, layers=dit.config.num_layers, whole_rings=False,
        groups=dit.config.num_query_groups, head_dim=dit.config.kv_channels,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip
    model = GuidedModel(dit, config.guidance, size=(config.chunk_width, *x.shape[3:]))
    computed: dict[str, Tensor] = {}
    for index, call in enumerate(calls):
        prefix = f"call{index}." if "calls" in meta else ""
        own = {name.removeprefix(prefix): inputs[name] for name in inputs if prefix in name}
        while cache.filled[0] < call["slice_point"]:
            cache.advance([0])
        computed |= _dispatch(model, config, cache, call, own, prefix)
        for name in case.tolerance:
            if name.startswith(f"{prefix}cache_layer"):
                layer = int(name.removeprefix(f"{prefix}cache_layer"))
                rows = case.references()[name].shape[0]
                k, v = cache.keys_LRKD[layer, :rows], cache.values_LRKD[layer, :rows]
                computed[name] = torch.cat([k, v], dim=-1)
    if "out_text" in case.tolerance:
        computed |= _single_passes(model, cache, meta, inputs)
    return Computed(tensors=computed)


def _dispatch(
    model: GuidedModel,
    config: SamplerConfig,
    cache: KVCache,
    call: Mapping[str, Any],
    own: Mapping[str, Tensor],
    prefix: str,
) -> dict[str, Tensor]:
    views = _views(model, call, own["y"], own["mask"])
    x = _chunks(own["x"], model.size[0])
    times = own["timestep"].flatten().tolist()
    dt = config.step_feature(call.get("distill_interval", 1))
    velocity = model.velocity(x, views, times, cache, dt)
    near_clean = call.get("near_clean", False) and config.guidance.writer is PassKind.TEXT
    if call.get("fwd_extra_1st_chunk") and not near_clean:
        velocity = torch.cat([x[:1], velocity[1:]])  # as published, never read
    return {f"{prefix}velocity": _clip(velocity)}


def _views(
    model: GuidedModel, call: Mapping[str, Any], y: Tensor, mask: Tensor
) -> tuple[ChunkView, ...]:
    dn, first = call["denoising_range_num"], call["slice_point"]
    n = model.tokens_per_chunk
    rows = [row[valid == 1] for row, valid in zip(y.flatten(0, 1), mask.flatten(0, 1), strict=True)]
    captions = [Caption(model.dit.caption_kv(tokens)) for tokens in rows]
    extra = int(call.get("fwd_extra_1st_chunk", False))
    clean = dn if call.get("extract_prefix", False) else extra
    return tuple(
        ChunkView(
            time=first + i,
            ahead=i,
            width=(stop - start) // n,
            caption=captions[i],
            null=captions[dn + i],
            clean=i < clean,
            cleanest=i == extra,
        )
        for i, (start, stop) in enumerate(call["kv_range"])
    )


def _single_passes(
    model: GuidedModel, cache: KVCache, meta: Mapping[str, Any], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The three passes apart."""
    views = _views(model, meta, inputs["y"], inputs["mask"])
    x, times = _chunks(inputs["x"], model.size[0]), inputs["timestep"].flatten().tolist()
    names = {
        "out_text": PassKind.TEXT, "out_null": PassKind.NULL, "out_uncond": PassKind.UNCONDITIONAL,
    }  # fmt: skip
    return {
        name: _clip(model.forward(kind, x, views, times, cache, None).velocity)
        for name, kind in names.items()
    }


def _chunks(clip: Tensor, chunk_width: int) -> Tensor:
    """A clip `[1, C, T, H, W]` as chunks `[G, C, P, H, W]`."""
    chunks: Tensor = clip[0].unflatten(1, (-1, chunk_width)).transpose(0, 1)
    return chunks


def _clip(chunks: Tensor) -> Tensor:
    clip: Tensor = chunks.transpose(0, 1).flatten(1, 2)[None]
    return clip


# ------------------------------------------------------------------------ a whole video


class _Conditions:
    """The captions of a case: the one given, with special tokens, and the null caption."""

    def __init__(self, case: Case, dit: VideoDiT) -> None:
        meta, inputs = case.meta, case.inputs()
        self.options = token_options(meta["environment"])
        table = SpecialTokens.load(
            case.folder / meta["special_tokens_file"], dit.config.caption_channels
        )
        width = dit.config.caption_max_length
        null = dit.y_embedder.null_caption_embedding
        self.null_rows = table.prepend(null, NEGATIVE if self.options.negative else (), width)
        self.null_tokens = self.null_rows[:_NULL_TOKENS]
        head = inputs["caption_embs_head"][0, 0]
        self._rows = torch.cat([head, head.new_zeros(width - len(head), head.shape[1])])
        self._valid = int(inputs["mask_head"].eq(1).sum())
        self._table, self._width = table, width

    def rows(self, remaining: int) -> Tensor:
        """All rows of a chunk's caption, valid or not."""
        if self._valid == 0:
            return self.null_rows  # an empty caption is the null caption, without special tokens
        return self._table.prepend(self._rows, self.options.names(remaining), self._width)

    def valid(self, remaining: int) -> int:
        """How many of them are valid."""
        if self._valid == 0:
            return _NULL_TOKENS
        return min(self._valid + len(self.options.names(remaining)), self._width)


class _Recorder(WindowSampler):
    """A sampler that writes down what its model calls were given and what they returned."""

    def __init__(self, source: "_Source", **arguments: Any) -> None:
        super().__init__(**arguments)
        self.calls: list[dict[str, Any]] = []
        self.states: list[Tensor] = []
        self.source = source
        self._state = source.whole_noise.clone()

    def denoise(self, step: DenoiseStep, source: ChunkSource, pinned: Tensor | None) -> None:
        super().denoise(step, source, pinned)
        P = self.size[1]
        for chunk in range(step.stage.first, step.stage.stop):
            self._state[0, :, chunk * P : (chunk + 1) * P] = self.x[chunk]
        self.states.append(self._state.clone())

    def velocity(self, call: ModelCall, x_GCPHW: Tensor) -> Tensor:
        velocity = super().velocity(call, x_GCPHW)
        shown = velocity
        one_pass = self.config.guidance.writer is PassKind.TEXT
        if call.extra_clean_chunk and not (call.near_clean and one_pass):
            shown = torch.cat([x_GCPHW[:1], velocity[1:]])  # as published, never read
        flat = _clip(shown).flatten()
        chunks = range(call.first, call.stop)
        texts = [
            self.source.valid(chunk) if prompted else _NULL_TOKENS
            for chunk, prompted in zip(chunks, call.prompted, strict=True)
        ]
        self.calls.append(
            {
                "extract_prefix": call.extract_prefix,
                "slice_point": call.first,
                "range_num": call.stop,
                "denoising_range_num": call.num_chunks,
                "fwd_extra_1st_chunk": call.extra_clean_chunk,
                "near_clean": call.near_clean,
                "distill_interval": call.interval,
                "t": list(call.t),
                "kv_range": [list(r) for r in call.kv_range(self.model.tokens_per_chunk)],
                "mask_lengths": texts + [_NULL_TOKENS] * call.num_chunks,
                "x": _statistics(x_GCPHW),
                "velocity": _statistics(shown),
                "velocity_probe": flat[:: flat.numel() // _PROBES][:_PROBES].tolist(),
            }
        )
        return velocity


class _Source:
    """Captions and noise of a case's chunks."""

    def __init__(
        self, conditions: _Conditions, dit: VideoDiT, config: SamplerConfig, noise: Tensor
    ) -> None:
        self._conditions, self._dit, self._config = conditions, dit, config
        self.whole_noise = noise
        self._noise: tuple[Tensor, ...] = noise[0].split(config.chunk_width, dim=1)

    def _remaining(self, chunk: int) -> int:
        return len(self._noise) - chunk - 1

    def valid(self, chunk: int) -> int:
        return self._conditions.valid(self._remaining(chunk))

    def exists(self, chunk: int) -> bool:
        return chunk < len(self._noise)

    def noise(self, chunk: int) -> Tensor:
        return self._noise[chunk]

    def kv_ranges(self, chunk: int) -> tuple[int, ...]:
        return self._config.kv_ranges

    def rows(self, chunk: int) -> Tensor:
        rows: Tensor = self._conditions.rows(self._remaining(chunk))
        return rows

    def caption(self, chunk: int) -> Caption:
        return Caption(self._dit.caption_kv(self.rows(chunk)[: self.valid(chunk)]))


def run_sampling(case: Case, load_dit: LoadDiT) -> Computed:
    """A whole video from given noise (section 6)."""
    computed, _ = _sample(case, load_dit(case), case.inputs().get("prefix_latent"))
    return computed


def run_e2e(case: Case, load_dit: LoadDiT) -> Computed:
    """Pixels to pixels."""
    meta, inputs = case.meta, case.inputs()
    vae = load_vae(case.folder / meta["vae_weights"], meta["config"])
    t = meta["tiling"]
    tiling = Tiling(
        length=t["tile_sample_min_length"], height=t["tile_sample_min_height"],
        width=t["tile_sample_min_width"], spatial_overlap=t["spatial_tile_overlap_factor"],
        temporal_overlap=t["temporal_tile_overlap_factor"],
    )  # fmt: skip
    pixels = to_pixels(inputs["prefix_frames"][None])
    prefix = tiled_encode(vae, pixels, tiling, compat="magi-1") * meta["scale_factor"]
    computed, chunks = _sample(case, load_dit(case), prefix)
    frames = [
        to_frames(tiled_decode(vae, chunk[None] / meta["scale_factor"], tiling, compat="magi-1"))[0]
        for chunk in chunks
    ]
    computed.tensors["prefix_latent"] = prefix
    computed.tensors["frames"] = torch.cat(frames).permute(0, 3, 1, 2)
    computed.values["frames_per_chunk"] = [len(each) for each in frames]
    return computed


def _sample(case: Case, dit: VideoDiT, prefix: Tensor | None) -> tuple[Computed, list[Tensor]]:
    meta, config, noise = case.meta, sampler_settings(case.meta), case.inputs()["noise"]
    conditions = _Conditions(case, dit)
    source = _Source(conditions, dit, config, noise)
    given = 0 if prefix is None else prefix.shape[2]
    chunk_num = schedule.count_chunks(
        meta["config"]["runtime_config"]["num_frames"],
        chunk_width=config.chunk_width,
        prefix_latent_frames=given,
    )
    sampler = _Recorder(
        source,
        dit=dit,
        config=config,
        size=(noise.shape[1], config.chunk_width, *noise.shape[3:]),
        null=Caption(dit.caption_kv(conditions.null_tokens)),
        num_chunks=chunk_num,
        prefix_latent_frames=given,
    )
    plan = sampler.plan
    shapes = {tensor["name"]: tensor["shape"] for tensor in case.entry["tensors"]}
    tensors: dict[str, Tensor] = {}
    chunks: list[Tensor] = []
    for emission, latents in sampler.run(source, None if prefix is None else prefix[0]):
        tensors[f"chunk{emission.index}"] = latents[None]
        chunks.append(latents)
    for index, state in enumerate(sampler.states):
        if f"x_after_step{index:03d}" in shapes:
            tensors[f"x_after_step{index:03d}"] = state
    if "y_after_padding_head" in shapes:
        head = shapes["y_after_padding_head"][2]
        texts = [source.rows(chunk)[:head] for chunk in range(chunk_num)]
        nulls = [conditions.null_rows[:head]] * chunk_num
        tensors["y_after_padding_head"] = torch.stack([torch.stack(texts), torch.stack(nulls)])
    lengths = [0 if chunk < plan.offset else source.valid(chunk) for chunk in range(chunk_num)]
    names = conditions.options.names(chunk_num)
    values = {
        "chunk_num": chunk_num,
        "report_chunk_num": [chunk_num - plan.offset],
        "latent_size": [1, noise.shape[1], chunk_num * config.chunk_width, *noise.shape[3:]],
        "special_token_keys": [
            "DURATION_TOKEN" if name.startswith("DURATION") else golden_name(name) for name in names
        ],
        "negative_special_token_keys": (
            [golden_name(name) for name in NEGATIVE] if conditions.options.negative else None
        ),
        "emb_mask_lengths": [lengths, [_NULL_TOKENS] * chunk_num],
        "forward_steps": sum(not call["extract_prefix"] for call in sampler.calls),
        "calls": sampler.calls,
    }
    return Computed(tensors, values), chunks


def _statistics(x: Tensor) -> dict[str, float]:
    wide = x.double()
    return {
        "mean": float(wide.mean()),
        "std": float(wide.std(correction=0)),
        "absmax": float(wide.abs().max()),
    }
