"""Plans of the published models against the tables of the specification."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_world.errors import ConfigError
from magi_world.planning import memory
from magi_world.planning.model import resized
from magi_world.planning.plan import PlanRequest, make_plan
from magi_world.planning.presets import PRESETS
from magi_world.planning.steady import SteadyState
from magi_world.sampling.settings import GenerateSettings

MIB = 2**20

# spec section 0: tokens per chunk and MiB of keys and values per chunk, 4.5B and 24B
SIZES = [
    (720, 720, 12150, 1613.7, 2278.1),
    (720, 1280, 21600, 2868.8, 4050.0),
    (480, 640, 7200, 956.3, 1350.0),
    (480, 832, 9360, 1243.1, 1755.0),
]


@pytest.mark.parametrize(("height", "width", "tokens", "small", "large"), SIZES)
def test_tokens_and_keys_are_those_of_the_table(
    height: int, width: int, tokens: int, small: float, large: float
) -> None:
    for name, mib in (("magi1-4.5b", small), ("magi1-24b", large)):
        plan = make_plan(resized(PRESETS[name], (height, width)))
        assert plan.tokens_per_chunk == tokens
        assert plan.kv_bytes_per_chunk / MIB == pytest.approx(mib, abs=0.051)
        assert plan.kv_chunks == 8
        assert plan.memory.kv_cache == 8 * plan.kv_bytes_per_chunk


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_counted(name: str) -> None:
    plan = make_plan(PRESETS[name])
    assert plan.parameters == (4_459_898_128 if "4.5b" in name else 23_899_281_936)
    assert plan.vae_parameters == 613_755_239


def test_weights_take_what_their_dtypes_say() -> None:
    base, quantised = PRESETS["magi1-4.5b"], PRESETS["magi1-4.5b-distill-fp8"]
    bfloat16 = make_plan(base).memory.weights
    assert 2 * 4_459_898_128 < bfloat16 < 2.05 * 4_459_898_128
    assert make_plan(base, PlanRequest(dtype="float32")).memory.weights == 4 * 4_459_898_128
    # layers 1 to L-2: q, qx, the output projection (2E x E), k, v, fc1, fc2
    E, F = 3072, 12288
    halved = 32 * (4 * E * E + 2 * E * 1024 + 2 * E * F)
    saved = bfloat16 - make_plan(quantised).memory.weights
    assert saved == pytest.approx(halved, rel=0.002)  # less the scales


@pytest.mark.parametrize(("window", "saved"), [(1, 1 / 6), (2, 1 / 12), (4, 1 / 12)])
@pytest.mark.parametrize("steps", [8, 16, 64])
def test_passes_without_weight_are_left_out(window: int, saved: float, steps: int) -> None:
    run = SteadyState.of(PRESETS["magi1-4.5b"], GenerateSettings(window=window, num_steps=steps))
    assert run.chunk_passes(skip=False) == 3 * steps
    assert 1 - run.chunk_passes(skip=True) / (3 * steps) == pytest.approx(saved)
    plan = make_plan(PRESETS["magi1-4.5b"], PlanRequest(window=window, num_steps=steps))
    assert plan.chunk_passes_published - 3 * steps == 2  # the published clean pass runs twice
    assert plan.flops_per_chunk < plan.flops_per_chunk_all_passes


def test_a_distilled_model_takes_one_pass_and_a_blend() -> None:
    plan = make_plan(PRESETS["magi1-24b-distill"])
    assert plan.cfg_number == 1 and plan.num_steps == 16
    assert plan.chunk_passes == plan.chunk_passes_published == 16 + 16 // 4 + 1


def test_the_published_hardware_fits() -> None:
    # spec section 7.5: 4.5B distilled, FP8, window 1 in 12 GB; cache in host memory
    small = PRESETS["magi1-4.5b-distill-fp8"]
    plan = make_plan(
        resized(small, (480, 832)), PlanRequest(window=1, offload_kv=True, num_steps=16)
    )
    assert plan.fits(12 * 10**9)
    assert not make_plan(PRESETS["magi1-24b"]).fits(24 * 2**30)


@settings(max_examples=25)
@given(
    name=st.sampled_from(sorted(PRESETS)),
    side=st.integers(2, 60),
    window=st.sampled_from([1, 2, 4, 8]),
    ranges=st.lists(st.integers(1, 8), min_size=1, max_size=4).filter(lambda r: len(r) != 3),
)
def test_memory_grows_with_everything(name: str, side: int, window: int, ranges: list[int]) -> None:
    config = resized(PRESETS[name], (16 * side, 32 * side))
    request = PlanRequest(window=window, kv_ranges=tuple(ranges), num_steps=64)
    plan = make_plan(config, request)
    wider = make_plan(replace(config, width=config.width + 16), request)
    assert plan.memory.total < wider.memory.total
    assert plan.flops_per_chunk < wider.flops_per_chunk
    assert plan.kv_chunks == max(ranges) - 1 + window
    longer = make_plan(config, replace(request, kv_ranges=(max(ranges) + 1,)))
    assert plan.memory.kv_cache < longer.memory.kv_cache
    moved = make_plan(config, replace(request, offload_kv=True, offload_layers=True))
    assert moved.memory.total < plan.memory.total
    held = moved.memory.weights + moved.memory.kv_cache + moved.host_bytes
    assert held >= plan.memory.weights + plan.memory.kv_cache


def test_devices_share_a_video() -> None:
    config = PRESETS["magi1-24b"]
    one, eight = make_plan(config), make_plan(config, PlanRequest(gpus=8))
    assert eight.memory.weights == one.memory.weights
    assert eight.memory.kv_cache * 8 == one.memory.kv_cache
    both = make_plan(config, PlanRequest(gpus=8, pipeline=2))
    assert both.memory.weights * 2 == pytest.approx(one.memory.weights, abs=2)
    assert both.memory.kv_cache == eight.memory.kv_cache
    sixteen = make_plan(config, PlanRequest(gpus=16))
    assert sixteen.memory.kv_cache == eight.memory.kv_cache  # heads are repeated
    assert one.flops_per_chunk == sixteen.flops_per_chunk


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"window": 0}, "window 0"),
        ({"window": 3}, "window 3 does not divide the 64 steps"),
        ({"num_steps": -8}, "num_steps -8"),
        ({"kv_ranges": (5, 4, 3)}, "64 steps are not a multiple of the 3"),
        ({"cfg_number": 2}, "cfg 2"),
        ({"dtype": "float16"}, "float16"),
        ({"gpus": 0}, "gpus 0"),
        ({"gpus": 3}, "3 devices"),
        ({"gpus": 8, "pipeline": 3}, "3 equal groups"),
        ({"gpus": 4, "pipeline": 4}, "34 layers"),
    ],
)
def test_what_cannot_run_is_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_plan(PRESETS["magi1-4.5b"], PlanRequest(**values))  # type: ignore[arg-type]


def test_sizes_are_whole_patches() -> None:
    with pytest.raises(ConfigError, match="480x840"):
        resized(PRESETS["magi1-4.5b"], (480, 840))


def test_keys_and_values_by_hand() -> None:
    config = PRESETS["magi1-24b"].dit
    assert memory.kv_bytes(config, 9360, torch.bfloat16) == 9360 * 8 * 256 * 2 * 48
