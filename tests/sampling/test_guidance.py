"""Which passes a call needs: weights by bands, context, and what the published scales save."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magi_world.sampling.captions import Caption
from magi_world.sampling.guidance import (
    PassKind,
    PromptGuidance,
    SinglePassGuidance,
    ThreePassGuidance,
    Weights,
    plan_passes,
)
from magi_world.sampling.guided import ChunkView
from magi_world.sampling.pipeline import DenoiseStep, SamplingPlan

SHIPPED = ThreePassGuidance(
    bounds=(0.0, 0.0217, 0.1, 0.3, 0.999),
    previous_scales=(1.5, 1.5, 1.5, 1.0, 1.0),
    text_scales=(7.5, 7.5, 7.5, 0.0, 0.0),
)
CAPTION = Caption([])


def views(step: DenoiseStep) -> list[ChunkView]:
    call = step.call
    return [
        ChunkView(
            time=call.first + i, ahead=i, width=stop - first, caption=CAPTION, null=CAPTION,
            clean=not call.prompted[i], cleanest=i == int(call.extra_clean_chunk),
        )
        for i, (first, stop) in enumerate(call.kv_chunks)
    ]  # fmt: skip


def count(step: DenoiseStep, *, skip: bool) -> int:
    passes = plan_passes(views(step), step.call.t, SHIPPED, skip=skip)
    return sum(len(one.rows) for one in passes)


@pytest.mark.parametrize(
    ("t", "weights"),
    [
        (0.0, (7.5, -6.0, -0.5)),
        (0.0217, (7.5, -6.0, -0.5)),
        (0.29, (7.5, -6.0, -0.5)),
        (0.30000001192, (0.0, 1.0, 0.0)),
        (1.0, (0.0, 1.0, 0.0)),
    ],
)
def test_the_shipped_scales(t: float, weights: tuple[float, ...]) -> None:
    assert SHIPPED.weights(t, True) == Weights(*weights)


@given(st.floats(0, 1, width=32), st.data())
def test_a_bound_belongs_to_the_band_that_begins_there(t: float, data: st.DataObject) -> None:
    inner = data.draw(st.lists(st.floats(2**-7, 1, width=32), unique=True, max_size=5))
    bounds = (0.0, *sorted(inner))
    scales = tuple(float(i) for i in range(len(bounds)))
    guidance = ThreePassGuidance(bounds=bounds, previous_scales=scales, text_scales=scales)
    band = int(guidance.weights(t, True).text)
    assert bounds[band] <= t + 2e-7
    assert band + 1 == len(bounds) or t <= bounds[band + 1]


def test_a_nearly_clean_chunk_is_blended_at_the_head_of_its_window_only() -> None:
    guidance = SinglePassGuidance()
    weights = guidance.weights(0.31, True)
    assert weights.text == 0.7 and math.isclose(weights.alone, 0.3)
    assert guidance.weights(0.31, False) == guidance.weights(0.3, True) == Weights(text=1.0)


def test_a_window_of_one_saves_a_sixth() -> None:
    # a quarter of the steps needs one pass of three
    steps = list(SamplingPlan(num_chunks=3, num_steps=8, own_clean_pass=True).steps())
    ran = sum(count(step, skip=True) for step in steps)
    assert ran / sum(count(step, skip=False) for step in steps) == pytest.approx(5 / 6)


def test_a_full_window_of_four_saves_a_twelfth() -> None:
    # the text pass of the cleanest chunk is context for the others, only its third pass goes
    plan = SamplingPlan(num_chunks=9, num_steps=8, window=4, own_clean_pass=True)
    full = [step for step in plan.steps() if step.stage.stop - step.stage.first == 4]
    assert {(count(step, skip=True), count(step, skip=False)) for step in full} == {(11, 12)}


def test_a_chunk_that_nobody_sees_leaves_the_text_pass() -> None:
    plan = SamplingPlan(
        num_chunks=4, num_steps=8, window=4, kv_ranges=(1, 1, 1, 2), own_clean_pass=True
    )
    (step,) = [s for s in plan.steps() if s.stage == (0, 4, 0, 4) and s.step_in_stage == 1]
    rows = {one.kind: one.rows for one in plan_passes(views(step), step.call.t, SHIPPED)}
    assert rows == {
        PassKind.TEXT: (1, 2, 3),
        PassKind.NULL: (0, 1, 2, 3),
        PassKind.UNCONDITIONAL: (1, 2, 3),
    }


def test_context_is_followed_through_other_chunks() -> None:
    # 2 sees 1, 1 sees 0; only 2 has a weight
    chunks = [ChunkView(time=i, ahead=i, width=2, caption=CAPTION, null=CAPTION) for i in range(3)]
    (one, *_) = plan_passes(chunks, [0.5, 0.5, 0.2], SHIPPED)
    assert (one.kind, one.rows, one.weights) == (PassKind.TEXT, (0, 1, 2), (0.0, 0.0, 7.5))


def test_slots_are_no_context_for_each_other() -> None:
    chunks = [
        ChunkView(time=0, slot=slot, ahead=ahead, caption=CAPTION, null=CAPTION)
        for slot in (0, 1)
        for ahead in (0, 1)
    ]
    (one, *_) = plan_passes(chunks, [0.5, 0.5, 0.5, 0.1], SHIPPED)
    assert one.rows == (2, 3)


@pytest.mark.parametrize(
    ("guidance", "kind"),
    [(SHIPPED, "null"), (SinglePassGuidance(), "text"), (PromptGuidance(scale=3.0), "text")],
)
@pytest.mark.parametrize("skip", [True, False])
def test_a_finished_chunk_takes_one_pass(guidance: object, kind: str, skip: bool) -> None:
    chunk = ChunkView(time=0, caption=CAPTION, null=CAPTION, clean=True)
    passes = plan_passes([chunk], [0.9999], guidance, skip=skip)  # type: ignore[arg-type]
    assert [one.kind.value for one in passes] == [kind]


def test_plain_guidance_takes_a_second_pass_only_when_it_has_a_weight() -> None:
    chunk = ChunkView(time=0, caption=CAPTION, null=CAPTION)
    assert len(plan_passes([chunk], [0.5], PromptGuidance())) == 1
    one, other = plan_passes([chunk], [0.5], PromptGuidance(scale=3.0))
    assert (one.weights, other.weights) == ((3.0,), (-2.0,))
