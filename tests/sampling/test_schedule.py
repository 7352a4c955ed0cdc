"""Schedules and the sampling plan: rules that hold for every configuration."""

import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_world.errors import ConfigError
from magi_world.sampling import schedule
from magi_world.sampling.pipeline import DenoiseStep, SamplingPlan

untimed = settings(deadline=None)  # a busy machine is no failure

TRANSFORMS = ["identity", "piecewise", "square"]
MODES = ["16,16,8", "8,16,16"]


@untimed
@given(
    num_steps=st.integers(1, 128),
    shift=st.floats(0.2, 8),
    transform=st.sampled_from(TRANSFORMS),
    mode=st.sampled_from(MODES),
)
def test_grids_rise_from_noise_to_clean(
    num_steps: int, shift: float, transform: str, mode: str
) -> None:
    grid = schedule.time_grid(num_steps, shift=shift, transform=transform, shortcut_mode=mode)
    assert len(grid) == num_steps + 1
    assert grid[0] == 0
    assert grid[-1] == pytest.approx(1, abs=1e-6)
    assert all(a < b for a, b in zip(grid, grid[1:], strict=False))
    sizes = schedule.step_sizes(grid)
    assert len(sizes) == num_steps
    assert sum(sizes) == pytest.approx(1, abs=1e-5)


def test_the_published_grid_has_its_float32_borders() -> None:
    grid = schedule.time_grid(8)
    assert grid[6] == 0.30000001192092896
    assert grid[-1] == 1.0000001192092896
    assert schedule.is_near_clean(grid[6])
    assert not schedule.is_near_clean(grid[5])


def test_few_step_grids() -> None:
    assert schedule.time_grid(1, shift=1.0) == [0, 1]
    assert schedule.time_grid(4, shift=1.0, transform="identity") == [0, 0.25, 0.5, 0.75, 1]
    assert schedule.time_grid(2, shift=3.0, transform="identity")[1] == pytest.approx(0.25)
    assert schedule.time_grid(4) == pytest.approx([0, 1 / 46, 0.1, 0.3, 1])


@untimed
@given(shift=st.floats(0.2, 8), transform=st.sampled_from(TRANSFORMS))
def test_a_shift_above_one_moves_every_step_towards_the_noise(shift: float, transform: str) -> None:
    plain = schedule.time_grid(5, shift=1.0, transform=transform)[1:-1]
    shifted = schedule.time_grid(5, shift=shift, transform=transform)[1:-1]
    for t, without in zip(shifted, plain, strict=True):
        assert t <= without + 1e-6 if shift >= 1 else t >= without - 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_twelve_steps_are_three_a_quarter(mode: str) -> None:
    grid = schedule.time_grid(12, shift=1.0, transform="identity", shortcut_mode=mode)
    assert grid[::3] == [0, 0.25, 0.5, 0.75, 1]
    lengths = [size / min(schedule.step_sizes(grid)) for size in schedule.step_sizes(grid)]
    assert lengths == schedule.step_intervals(12, mode)


@pytest.mark.parametrize(
    ("config", "equals"),
    [
        ({}, {}),
        ({"shift": 5}, {"shift": 5.0}),
        ({"tSchedulerFunc": "square"}, {"shift": 1.0}),
        ({"tSchedulerFunc": "identity", "shift": 5}, {"shift": 1.0, "transform": "identity"}),
    ],
)
def test_published_schedule_config(config: dict[str, object], equals: dict[str, object]) -> None:
    got = schedule.time_grid_from_config(16, config)
    assert got == schedule.time_grid(16, **equals)  # type: ignore[arg-type]


@untimed
@given(chunks=st.integers(1, 12), window=st.integers(1, 6), data=st.data())
def test_stages_give_every_chunk_each_noise_stage_once(
    chunks: int, window: int, data: st.DataObject
) -> None:
    offset = data.draw(st.integers(0, chunks - 1))
    seen: dict[int, list[int]] = {chunk: [] for chunk in range(offset, chunks)}
    for stage in schedule.stages(chunks, window, offset=offset):
        noise = stage.time_indices(1, 0)
        assert 1 <= stage.stop - stage.first == len(noise) <= window
        for chunk, index in zip(range(stage.first, stage.stop), noise, strict=True):
            seen[chunk].append(index)
    assert all(stages == list(range(window)) for stages in seen.values())


@st.composite
def plans(draw: st.DrawFn) -> SamplingPlan:
    window = draw(st.integers(1, 4))
    chunks = draw(st.integers(1, 7))
    width = draw(st.integers(1, 6))
    widths = draw(st.lists(st.integers(1, 6), max_size=4))
    unit = math.lcm(window, len(widths) or 1)
    return SamplingPlan(
        num_chunks=chunks,
        num_steps=unit * draw(st.integers(1, max(1, 24 // unit))),
        window=window,
        chunk_width=width,
        prefix_latent_frames=draw(st.integers(0, chunks * width - 1)),
        kv_ranges=tuple(widths),
        clean_kv_range=draw(st.sampled_from([-1, 1, 2, 3])),
    )


@untimed
@given(plan=plans())
def test_every_chunk_gets_every_step_in_order_and_leaves_once(plan: SamplingPlan) -> None:
    steps = list(plan.steps())
    assert plan.total_steps is not None and plan.num_chunks is not None
    assert [step.index for step in steps] == list(range(plan.total_steps))
    generated = range(plan.offset, plan.num_chunks)
    done: dict[int, list[int]] = {chunk: [] for chunk in generated}
    moved = dict.fromkeys(generated, 0.0)
    emitted = []
    for step in steps:
        window = range(step.stage.first, step.stage.stop)
        for chunk, k, dt in zip(window, step.time_indices, step.delta_t, strict=True):
            done[chunk].append(k)
            moved[chunk] += dt
        if step.emitted is not None:
            assert len(done[step.emitted.chunk]) == plan.num_steps
            emitted.append(step.emitted)
    assert all(ks == list(range(plan.num_steps)) for ks in done.values())
    assert list(moved.values()) == pytest.approx([1.0] * len(generated), abs=1e-5)
    assert [e.chunk for e in emitted] == list(generated)
    assert [e.index for e in emitted] == list(range(len(generated)))
    # what leaves is the video behind the prefix, in one piece (an image is sent along)
    first = emitted[0].first
    assert [frame for e in emitted for frame in range(e.first, e.stop)] == list(
        range(first, plan.num_chunks * plan.chunk_width)
    )
    image = plan.prefix_latent_frames == 1 and plan.chunk_width > 1
    assert first == (0 if image else plan.prefix_latent_frames)


@untimed
@given(plan=plans())
def test_calls_fit_their_input_and_the_cache(plan: SamplingPlan) -> None:
    cached = plan.offset  # chunks whose clean keys and values are in the cache
    prefix = plan.prefix_call()
    assert (prefix is None) == (plan.offset == 0)
    steps: list[DenoiseStep] = list(plan.steps())
    calls = [step.call for step in steps]
    for call in [*([prefix] if prefix else []), *calls]:
        assert len(call.t) == len(call.kv_chunks) == len(call.prompted) == call.num_chunks
        assert all(0 <= t <= 1.000001 for t in call.t)
        for chunk, (first, stop) in zip(range(call.first, call.stop), call.kv_chunks, strict=True):
            assert 0 <= first < stop == chunk + 1  # itself at least, never the future
        assert call.kv_range(7) == [(7 * a, 7 * b) for a, b in call.kv_chunks]
        assert 0 <= call.prefix_latent_frames <= call.num_chunks * plan.chunk_width
        assert call.extract_prefix or call.prefix_latent_frames < plan.chunk_width
    for step in steps:
        call = step.call
        # everything before the input is in the cache, clean
        assert call.first == cached
        assert call.stop == step.stage.stop
        if call.extra_clean_chunk:
            assert call.first + 1 == step.stage.first
            assert step.step_in_stage == 0
            assert call.prompted[0] is False
            cached += 1
        assert cached == step.stage.first
        assert all(call.prompted[call.extra_clean_chunk :])
        assert call.near_clean == (call.t[call.extra_clean_chunk] > plan.near_clean_threshold)


def test_kv_widths_follow_the_noise() -> None:
    widths = (5, 4, 3, 2)
    assert [schedule.kv_width(k, 8, widths) for k in range(8)] == [5, 5, 4, 4, 3, 3, 2, 2]
    assert schedule.kv_width(3, 8, ()) is None
    assert schedule.kv_chunks(6, 4) == (3, 7)
    assert schedule.kv_chunks(1, 4) == (0, 2)
    assert schedule.kv_chunks(6, None) == (0, 7)
    assert schedule.clean_kv_width(widths, 1) == 1
    assert schedule.clean_kv_width(widths, -1) == 2
    assert schedule.clean_kv_width((), 1) is None
    # the prefix extraction keeps its own rule without KV ranges
    assert schedule.clean_kv_width((), 1, prefix=True) == 1
    assert schedule.clean_kv_width((), -1, prefix=True) == 8


def test_chunks_of_a_video() -> None:
    assert schedule.count_chunks(96, chunk_width=6) == 4
    assert schedule.count_chunks(96, chunk_width=6, prefix_latent_frames=1) == 5
    assert schedule.count_chunks(96, chunk_width=6, prefix_latent_frames=8) == 6
    assert schedule.count_chunks(4, chunk_width=1) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": 10, "window": 4}, r"window 4 .* 10 steps.*allowed are \[1, 2, 5, 10\]"),
        ({"num_steps": 6, "window": 2}, "num_steps 6 .* 4 KV ranges .* multiples of 4"),
        ({"num_steps": 2}, "num_steps 2 .* multiples of 4"),
        ({"num_steps": 0}, "num_steps 0 is below 1"),
        ({"window": 0}, "window 0 is below 1"),
        ({"num_chunks": 0}, "num_chunks 0 is below 1"),
        ({"chunk_width": -1}, "chunk_width -1 is below 1"),
        ({"prefix_latent_frames": 18}, r"prefix_latent_frames 18 is outside 0\.\.17"),
        ({"prefix_latent_frames": -1}, r"prefix_latent_frames -1 is outside 0\.\.17"),
        ({"kv_ranges": (5, 0, 3, 2)}, "KV range 0 is below 1"),
        ({"kv_ranges": (5, 4.5, 3, 2)}, "KV range 4.5: a whole number"),
        ({"kv_ranges": "5432"}, "KV range '5': a whole number"),
        ({"clean_kv_range": 0}, "clean_kv_range 0 is neither -1 nor positive"),
        ({"clean_t": 1.5}, r"clean_t 1\.5 is outside"),
        ({"shift": 0.0}, "shift 0.0 is not a positive number"),
        ({"shift": math.nan}, "shift nan is not a positive number"),
        ({"transform": "cubic"}, "'cubic' is unknown; known are .*identity.*piecewise.*square"),
        ({"shortcut_mode": "8,8"}, "'8,8' is unknown; known are .*16,16,8.*8,16,16"),
    ],
)
def test_a_plan_that_cannot_work_is_refused(arguments: dict[str, object], message: str) -> None:
    values: dict[str, object] = {"num_chunks": 3, "num_steps": 8, "window": 1, **arguments}
    with pytest.raises(ConfigError, match=message):
        SamplingPlan(**values)  # type: ignore[arg-type]


def test_wrong_arguments_of_the_single_rules() -> None:
    with pytest.raises(ConfigError, match="outside 0..2"):
        list(schedule.stages(3, 2, offset=3))
    with pytest.raises(ConfigError, match="time index 8 is outside 0..7"):
        schedule.kv_width(8, 8, (2,))
    with pytest.raises(ConfigError, match="less than one latent"):
        schedule.count_chunks(3, chunk_width=6)
    with pytest.raises(ConfigError, match="unknown keys"):
        schedule.time_grid_from_config(8, {"power": 2})
    with pytest.raises(ConfigError, match="num_steps 0 is below 1"):
        schedule.step_intervals(0)


@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 5))
def test_an_end_that_comes_as_a_surprise_changes_no_stage(
    num_chunks: int, window: int, offset: int
) -> None:
    asked: list[int] = []

    def exists(chunk: int) -> bool:
        asked.append(chunk)
        return chunk < offset + num_chunks

    surprised = list(schedule.stages(None, window, offset=offset, exists=exists))
    assert surprised == list(schedule.stages(offset + num_chunks, window, offset=offset))
    assert asked == list(range(offset, offset + num_chunks + 1))  # once each, in order


def test_a_video_may_have_no_chunk_and_no_end() -> None:
    assert list(schedule.stages(None, 3, exists=lambda chunk: False)) == []
    endless = list(itertools.islice(schedule.stages(None, 3), 50))
    assert endless[-1] == (47, 50, 0, 3)


@given(plans())
def test_a_clean_pass_of_its_own_moves_a_chunk_out_of_the_next_call(plan: SamplingPlan) -> None:
    apart = dataclasses.replace(plan, own_clean_pass=True)
    for one, other in zip(plan.steps(), apart.steps(), strict=True):
        assert (one.call.extra_clean_chunk, one.clean_call) == (other.clean_call is not None, None)
        if other.clean_call is None:
            assert one.call == other.call
            continue
        clean, rest = other.clean_call, other.call
        assert one.call.t == (*clean.t, *rest.t)
        assert one.call.kv_chunks == (*clean.kv_chunks, *rest.kv_chunks)
        assert one.call.prompted == (*clean.prompted, *rest.prompted)
        assert (one.call.first, one.call.stop) == (clean.first, rest.stop)
        assert one.call.prefix_latent_frames == clean.prefix_latent_frames


def test_chunks_may_bring_ranges_of_their_own() -> None:
    plan = SamplingPlan(num_chunks=4, num_steps=4, window=2, own_clean_pass=True)
    steps = plan.steps(kv_ranges_of=lambda chunk: (1, 1, 1, 1) if chunk == 2 else (4, 3, 2, 1))
    seen: dict[int, set[int]] = {}
    for step in steps:
        for first, stop in step.call.kv_chunks:
            seen.setdefault(stop - 1, set()).add(stop - first)
    assert seen == {0: {1}, 1: {1, 2}, 2: {1}, 3: {1, 2, 3, 4}}
