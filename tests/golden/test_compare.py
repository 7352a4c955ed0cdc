"""The comparison itself must fail on wrong values, or the golden suite would pass on anything."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden import test_golden
from tests.golden.cases import DATA, Case, Computed, load_cases
from tests.golden.compare import Rule, document_mismatches, mismatch, select, value_mismatch
from tests.golden.drivers import DRIVERS

REFERENCE = torch.tensor([-4.0, 0.0, 2.0, 10.0])
FRAMES = torch.arange(1000, dtype=torch.int64).remainder(256).to(torch.uint8)


def moved(by: float, index: int = 2) -> Tensor:
    got = REFERENCE.double()
    got[index] += by
    return got


@pytest.mark.parametrize(
    ("rule", "right", "wrong"),
    [
        ({"atol": 0.5}, moved(0.5), moved(0.500001)),
        ({"atol": 0.5}, moved(-0.5), moved(-0.500001)),
        ({"atol": 0.5, "rtol": 0.1}, moved(1.5, 3), moved(1.500001, 3)),
        ({"atol": 0.5, "rtol": 0.1}, moved(0.9, 0), moved(0.6, 1)),
        ({"relative_l2": 0.1}, moved(0.0999 * math.sqrt(120)), moved(0.1001 * math.sqrt(120))),
        ({"exact": True}, REFERENCE, moved(1e-12)),
    ],
)
def test_bounds(rule: Rule, right: Tensor, wrong: Tensor) -> None:
    assert mismatch(REFERENCE, REFERENCE, rule) is None
    # information beside the rule changes nothing
    assert mismatch(right, REFERENCE, {**rule, "note": "a", "max_abs": 0.0}) is None
    assert mismatch(wrong, REFERENCE, rule) is not None


@pytest.mark.parametrize(
    "rule",
    [{"atol": 1.0}, {"atol": 1.0, "rtol": 1.0}, {"relative_l2": 1.0}, {"exact": True}],
)
def test_nan_and_shape_disagree_under_every_rule(rule: Rule) -> None:
    nan = REFERENCE.clone()
    nan[1] = math.nan
    assert mismatch(nan, REFERENCE, rule) is not None
    assert mismatch(REFERENCE, nan, rule) is not None
    assert mismatch(nan, nan, rule) is not None
    assert mismatch(REFERENCE[:, None], REFERENCE, rule) is not None  # would broadcast
    assert mismatch(REFERENCE[:3], REFERENCE, rule) is not None
    infinite = REFERENCE.clone()
    infinite[3] = math.inf
    assert mismatch(infinite, REFERENCE, rule) is not None


def test_uint8_rule_bounds_both_the_difference_and_the_share() -> None:
    rule = {"uint8_max_difference": 1, "fraction": 0.001}

    def changed(count: int, by: int) -> Tensor:
        got = FRAMES.clone()
        got[:count] += by
        return got

    assert mismatch(changed(0, 1), FRAMES, rule) is None
    assert mismatch(changed(1, 1), FRAMES, rule) is None
    assert mismatch(changed(2, 1), FRAMES, rule) is not None
    assert mismatch(changed(1, 2), FRAMES, rule) is not None
    assert mismatch(FRAMES.int(), FRAMES, rule) is not None
    # 255 against 0 is a difference of 255, not of 1 around the corner
    assert mismatch(FRAMES.clone().fill_(255), FRAMES.clone().fill_(0), rule) is not None


@pytest.mark.parametrize("rule", [{}, {"rtol": 1.0}, {"atol": 1.0, "exact": True}, {"note": "x"}])
def test_a_rule_of_no_known_form_is_refused(rule: Rule) -> None:
    with pytest.raises(ValueError, match="none of the forms"):
        mismatch(REFERENCE, REFERENCE, rule)


DOCUMENT: dict[str, Any] = {
    "count": 2,
    "rows": [{"t": [0.0, 0.5], "end": None}, {"t": [1.0], "end": {"at": [3, 4], "name": "x"}}],
    "named": {"a": {"mask": [1, 0]}, "b": {"mask": [1]}},
}
RULES: dict[str, Rule] = {
    "count": {"exact": True},
    "rows[*].t": {"atol": 0.01},
    "rows[*].end": {"exact": True},
    "rows[*].end.at": {"exact": True},
    "named.*.mask": {"exact": True},
}


def test_paths_reach_every_element() -> None:
    assert select(DOCUMENT, "rows[*].t") == {"rows[0].t": [0.0, 0.5], "rows[1].t": [1.0]}
    assert select(DOCUMENT, "rows[*].end.at") == {"rows[0].end": None, "rows[1].end.at": [3, 4]}
    assert select(DOCUMENT, "named.*.mask") == {"named.a.mask": [1, 0], "named.b.mask": [1]}
    assert select(DOCUMENT, "rows[*].t[*]") == {
        "rows[0].t[0]": 0.0, "rows[0].t[1]": 0.5, "rows[1].t[0]": 1.0,
    }  # fmt: skip
    assert document_mismatches(DOCUMENT, DOCUMENT, RULES) == ([], 9)


def edit(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "count": 2,
        "rows": [dict(row) for row in DOCUMENT["rows"]],
        "named": {key: dict(value) for key, value in DOCUMENT["named"].items()},
    }
    change(document)
    return document


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(count=3),
        lambda d: d.update(count=True),
        lambda d: d.pop("count"),
        lambda d: d.update(rows=None),
        lambda d: d["rows"].pop(),
        lambda d: d["rows"].append(d["rows"][0]),
        lambda d: d["rows"][0].update(t=[0.0, 0.52]),
        lambda d: d["rows"][0].update(t=[0.0]),
        lambda d: d["rows"][0].update(t=[0.0, math.nan]),
        lambda d: d["rows"][0].update(t=None),
        lambda d: d["rows"][0].update(t="early"),
        lambda d: d["rows"][0].update(end={"at": [3, 4], "name": "x"}),
        lambda d: d["rows"][1].update(end=None),
        lambda d: d["rows"][1].update(end={"at": [3, 4]}),
        lambda d: d["rows"][1].update(end={"at": [3, 4, 5], "name": "x"}),
        lambda d: d["named"].pop("b"),
        lambda d: d["named"].update(c={"mask": []}),
        lambda d: d["named"]["a"].update(mask=[True, False]),
    ],
)
def test_a_changed_value_is_found(change: Callable[[dict[str, Any]], object]) -> None:
    wrong, _ = document_mismatches(edit(change), DOCUMENT, RULES)
    assert wrong


def test_values_within_the_bound_agree() -> None:
    assert value_mismatch((0.0, 0.505), [0.0, 0.5], {"atol": 0.01}) is None
    assert value_mismatch(None, None, {"atol": 0.01}) is None
    assert value_mismatch(((1, 2), (3,)), [[1, 2], [3]], {"exact": True}) is None


PUBLIC = {case.name: case for case in load_cases(DATA)}


def run_with(
    monkeypatch: pytest.MonkeyPatch, case: Case, change: Callable[[Computed], object]
) -> None:
    driver = DRIVERS[case.kind]

    def changed(case: Case) -> Computed:
        computed = driver(case)
        change(computed)
        return computed

    monkeypatch.setitem(DRIVERS, case.kind, changed)
    test_golden.test_case(case)


@pytest.mark.parametrize("name", ["rope_d24_T1_H4_W4_off0", "mlp_A", "encode_decode_native_V2"])
def test_every_tensor_with_a_tolerance_is_compared(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = PUBLIC[name]
    run_with(monkeypatch, case, lambda computed: None)
    for tensor, rule in case.tolerance.items():

        def drop(computed: Computed, tensor: str = tensor) -> object:
            return computed.tensors.pop(tensor)

        def shift(computed: Computed, tensor: str = tensor, by: float = 2 * rule["atol"]) -> None:
            computed.tensors[tensor] = computed.tensors[tensor] + by

        for change in (drop, shift):
            with monkeypatch.context() as patch, pytest.raises(AssertionError, match=tensor):
                run_with(patch, case, change)


def test_every_expected_value_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    case = PUBLIC["timesteps_and_sequences"]

    def shift(computed: Computed) -> None:
        computed.values["timesteps"][3]["t"][5] += 2e-7

    def drop(computed: Computed) -> None:
        del computed.values["sequences"]

    for change, named in ((shift, r"timesteps\[3\].t"), (drop, r"sequences\[\*\].clip_start")):
        with monkeypatch.context() as patch, pytest.raises(AssertionError, match=named):
            run_with(patch, case, change)


def test_every_case_of_a_kind_with_a_driver_runs() -> None:
    for case in PUBLIC.values():
        assert case.kind in DRIVERS, case.name


def test_tolerance_names_every_tensor_that_is_not_an_input() -> None:
    for case in PUBLIC.values():
        tensors = {t["name"]: t.get("role") for t in case.entry["tensors"]}
        computed = {name for name, role in tensors.items() if role in ("output", "intermediate")}
        assert computed == set(case.tolerance), case.name


def test_the_public_set_is_complete() -> None:
    for case in PUBLIC.values():
        meta = case.meta
        assert (meta["name"], meta["kind"]) == (case.name, case.kind)
        named = [
            case.entry["meta"], case.entry["file"],
            meta.get("weights"), meta.get("vae_weights"), meta.get("special_tokens_file"),
        ]  # fmt: skip
        for file in named:
            assert file is None or (DATA / file).is_file(), f"{case.name}: {file}"
