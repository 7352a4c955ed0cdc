# mypy: disable-error-code="arg-type"
"""Which backend takes a call: the order, the reasons, and what a forced backend says."""

import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_world.kernels.attention import (
    AttnSlices,
    BackendError,
    BackendMissing,
    DeviceSlices,
    attention,
    backends,
    builders,
    explain,
    flash2,
    flash4,
    triton_ops,
)
from magi_world.kernels.attention import call as calls
from magi_world.kernels.attention.call import Call
from magi_world.kernels.attention.choice import choose, order, refusal
from magi_world.kernels.attention.reference import dense_mask
from tests.kernels.test_attention import inputs, masks

MASK = builders.block_causal(8, 4)


def on(capability: int, dtype: torch.dtype = torch.bfloat16, width: int = 64, **more: bool) -> Call:
    """A call on a GPU that need not be there."""
    keys = {"softcap": False, "sink": False, "needs_grad": True} | more
    return Call(torch.device("cuda"), dtype, width, capability, **keys)


@pytest.mark.parametrize(
    ("keywords", "backend"),
    [({}, "sdpa"), ({"sink": torch.zeros(4)}, "sdpa"), ({"softcap": 2.0}, "cpu")],
)
def test_explain_tells_what_auto_takes(keywords: dict[str, Any], backend: str) -> None:
    q, k, v = inputs(0, 8, 8, dtype=torch.float32)
    choice = explain(q, MASK, **keywords)
    assert choice.backend == backend
    auto, forced = (attention(q, k, v, MASK, backend=b, **keywords) for b in ("auto", backend))
    assert torch.equal(auto[0], forced[0])
    assert set(choice.refused) >= {"flex", "flash4", "flash2"}
    assert not {"reference", "cpu", backend} & set(choice.refused)
    text = str(choice).splitlines()
    assert text[0].startswith(f"{backend}: the first of sdpa, cpu, reference on cpu that takes")
    assert "  not flex: has no backward on a CPU" in text
    assert "float32, head width 8" in choice.reason and "gradients" in choice.reason
    assert ("a softcap" in choice.reason) == ("softcap" in keywords)
    assert ("a sink" in choice.reason) == ("sink" in keywords)


@pytest.mark.parametrize(
    ("capability", "first"),
    [(80, "triton"), (89, "triton"), (90, "flash4"), (100, "flash4"), (120, "triton")],
)
def test_each_gpu_has_its_order(capability: int, first: str) -> None:
    ranked = order(on(capability))
    assert ranked[0] == first and ranked[-1] == "reference"
    assert "cpu" not in ranked and len(set(ranked)) == len(ranked)


@pytest.mark.parametrize("capability", [80, 90, 100, 120])
def test_a_mask_that_is_refilled_goes_to_the_kernels_that_read_it_on_the_device(
    capability: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (flash4, triton_ops):  # as if all packages were there
        monkeypatch.setattr(module, "import_refusal", lambda *given, **more: None)
    refilled = DeviceSlices(num_queries=8, num_keys=8, max_slices=4, max_tiles=64)
    mask = builders.block_causal(8, 4)
    refilled.fill(mask)
    fixed = "flash4" if capability in (90, 100) else "triton"
    assert choose("auto", on(capability), mask) == fixed
    assert choose("auto", on(capability), refilled) == "triton"
    assert choose("auto", on(capability), mask) == fixed  # what is kept with the mask stays apart
    assert choose("auto", on(capability, torch.float64), refilled) == "sdpa"


def test_a_captured_graph_keeps_no_mask_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.detach() for x in inputs(0, 8, 8, dtype=torch.float32))
    refilled = DeviceSlices(num_queries=8, num_keys=8, max_slices=4, max_tiles=64)
    monkeypatch.setattr(backends, "capturing", lambda q: True)
    for name in ("cpu", "flex", "reference"):
        with pytest.raises(BackendError, match=f"'{name}' reads a refilled mask on the host"):
            attention(q, k, v, refilled, backend=name)
        attention(q, k, v, builders.causal(8), backend=name)  # it does not change


def test_flash4_leaves_deterministic_gradients_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (flash4, triton_ops):
        monkeypatch.setattr(module, "import_refusal", lambda *given, **more: None)
    mask = builders.block_causal(8, 4)
    assert choose("auto", on(90, deterministic=True), mask) == "triton"
    assert choose("auto", on(90, deterministic=True, needs_grad=False), mask) == "flash4"
    with pytest.raises(BackendError, match="'flash4' has no deterministic backward"):
        choose("flash4", on(90, deterministic=True), mask)


def test_explain_knows_what_a_call_may_ask() -> None:
    q = inputs(0, 8, 8, dtype=torch.float32)[0]
    refilled = DeviceSlices(num_queries=8, num_keys=8, max_slices=4, max_tiles=64)
    reason = explain(q.detach(), refilled, deterministic=True).reason
    assert "the same bits in every call" in reason and "a mask that is refilled" in reason
    # for gradients the mask of the moment is taken, which is never refilled
    assert "refilled" not in explain(q, refilled).reason
    asked = explain(q.detach(), MASK, needs_grad=True)  # the keys need one, for instance
    assert "no backward on a CPU" in asked.refused["flex"]
    assert "flex" not in explain(q.detach(), MASK).refused
    assert "flex" not in explain(q, MASK, needs_grad=False).refused


def test_flash2_is_not_taken_for_gradients_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash2, "import_refusal", lambda *given, **more: None)
    packed = builders.varlen([8, 8])
    call = on(80, torch.float16, needs_grad=True)  # triton is absent or on the wrong machine
    for module in (triton_ops, flash4):
        monkeypatch.setattr(module, "refuses", lambda call, slices: calls.Refusal("is not here"))
    assert choose("auto", call._replace(needs_grad=False), packed) == "flash2"
    assert choose("auto", call, packed) == "flex"
    assert choose("flash2", call, packed) == "flash2"


def test_a_package_of_another_version_is_told_from_the_right_one() -> None:
    takes = calls.import_refusal("json", "cuda", "dumps", ("obj", "indent"))
    assert takes is None
    found = calls.import_refusal("json", "cuda", "dumps", ("obj", "mask_mod"))
    assert found is not None and found.missing
    assert "json.dumps that takes mask_mod" in found.reason


def test_a_broken_package_is_not_to_be_installed(tmp_path: Path) -> None:
    (tmp_path / "broken_kernels.py").write_text("raise OSError('no such symbol')")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        found = calls.import_refusal("broken_kernels", "cuda")
    assert found is not None and found.missing
    assert "is installed but does not import (OSError: no such symbol)" in found.reason
    assert "pip install" not in found.reason


@pytest.mark.parametrize(
    ("backend", "call", "words"),
    [
        ("triton", on(75), "needs sm_80 or newer, not sm_75"),
        ("triton", on(90, torch.float64), "not torch.float64"),
        ("triton", on(90, width=512), "head widths up to 256, not 512"),
        ("flash4", on(80), "needs a CUDA device of sm_90"),
        ("flash4", on(90, torch.float32), "takes float16 and bfloat16, not torch.float32"),
        ("flash4", on(90, width=192), "head widths up to 128"),
        ("flash4", on(90, width=20), "multiples of 8, not 20"),
        ("flash4", on(90, softcap=True), "no softcap"),
        ("flash4", on(90), r"does not import .*: pip install 'magi-world\[cuda\]'"),
        ("flash2", on(75), "needs a CUDA device from sm_80"),
        ("flash2", on(90, torch.float32), "takes float16 and bfloat16"),
        ("flash2", on(90, width=264), "head widths up to 256"),
        ("flash2", on(90, sink=True), "takes no sink"),
        ("flash2", on(90), "takes packed samples"),
        ("flex", on(90, torch.float64), "takes no float64 on CUDA"),
        ("flex", on(90, width=264), "head widths up to 256 on CUDA"),
        ("cpu", on(90), "runs on a CPU, not on cuda"),
        ("sdpa", on(90, softcap=True), "takes no softcap"),
        ("sdpa", on(90, deterministic=True), "gradients of keys in no fixed order"),
    ],
)
def test_backends_say_why_they_refuse(backend: str, call: Call, words: str) -> None:
    found = refusal(backend, call, MASK)
    assert found is not None
    with pytest.raises(BackendError, match=words):
        raise BackendError(found.reason)
    assert found.missing == ("pip install" in found.reason)


def test_backends_take_what_they_can() -> None:
    for backend in ("triton", "flex", "sdpa", "reference"):
        assert refusal(backend, on(90), MASK) is None


def test_a_forced_backend_names_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = (x.detach() for x in inputs(0, 8, 8, dtype=torch.float64))
    with pytest.raises(BackendError, match=r"'flash2' needs .* taken by sdpa, cpu, reference"):
        attention(q, k, v, MASK, backend="flash2")
    with pytest.raises(BackendError, match=r"'triton' takes float32|'triton' needs a CUDA device"):
        attention(q, k, v, MASK, backend="triton")
    with pytest.raises(BackendError, match="no backward on a CPU"):
        attention(q.requires_grad_(), k, v, MASK, backend="flex")


def test_a_missing_package_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setitem(sys.modules, "triton", None)  # as if it were not installed
    calls.import_refusal.cache_clear()
    q, k, v = (x.detach() for x in inputs(0, 8, 8, dtype=torch.float32))
    mask = builders.block_causal(8, 4)
    try:
        with pytest.raises(BackendMissing, match=r"pip install 'magi-world\[cuda\]'") as caught:
            attention(q, k, v, mask, backend="triton")
    finally:
        calls.import_refusal.cache_clear()
    assert isinstance(caught.value, ImportError) and isinstance(caught.value, ValueError)


def test_triton_on_a_cpu_needs_its_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    q = torch.zeros(8, 2, 8)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "TRITON_INTERPRET=1" in explain(q, MASK).refused["triton"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "wrong in bfloat16" in explain(q.bfloat16(), MASK).refused["triton"]


@settings(max_examples=15)
@given(
    masks(),
    st.integers(0, 99),
    st.sampled_from([(4, 4), (4, 2)]),
    st.sampled_from([0.0, 1.5]),
    st.sampled_from([None, (2, 4)]),
)
def test_flex_is_a_second_opinion(
    slices: AttnSlices, seed: int, heads: tuple[int, int], softcap: float, sinks: Any
) -> None:
    q, k, v = (x.detach() for x in inputs(seed, 13, 24, *heads, width=16, dtype=torch.float32))
    sink = None if sinks is None else torch.randn(sinks, generator=torch.manual_seed(seed))
    keywords: dict[str, Any] = {"softcap": softcap, "sink": sink}
    mine = attention(q, k, v, slices, backend="flex", **keywords)
    theirs = attention(q, k, v, slices, backend="reference", **keywords)
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-6)


def dense(found: flash2.Samples, queries: int, keys: int) -> Any:
    """The mask that FlashAttention 2 makes of packed samples."""
    mask = np.zeros((queries, keys), bool)
    for i, (q0, q1) in enumerate(zip(found.q_ends, found.q_ends[1:], strict=False)):
        k0, k1 = found.k_ends[i : i + 2]
        n, m = q1 - q0, k1 - k0
        row, key = np.ogrid[:n, :m]
        mask[q0:q1, k0:k1] = key <= row + m - n if found.causal else True
    assert (found.q_ends[-1], found.k_ends[-1]) == (queries, keys)
    return mask


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 4), max_size=5), st.booleans())
def test_packed_samples_are_recognised(parts: list[tuple[int, ...]], causal: bool) -> None:
    rows, q, k = [], 0, 0
    for q_gap, n, k_gap, m in parts:
        q, k = q + q_gap, k + k_gap
        rows.append((q, q + n, k, k + m, int(causal)))
        q, k = q + n, k + m
    mask = AttnSlices.from_list(rows)
    found = flash2.samples(mask, (q + 2, k + 1))
    assert found is not None
    assert np.array_equal(dense(found, q + 2, k + 1), dense_mask(mask, q + 2, k + 1).numpy())


@given(masks())
def test_other_masks_are_never_taken_for_samples(mask: AttnSlices) -> None:
    found = flash2.samples(mask, (13, 24))
    if found is not None:
        assert np.array_equal(dense(found, 13, 24), dense_mask(mask, 13, 24).numpy())


@pytest.fixture
def packaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call of flash-attn 2, with a stand-in that follows its published signature."""

    def flash_attn_varlen_func(
        q: Tensor, k: Tensor, v: Tensor, q_ends: Tensor, k_ends: Tensor, q_longest: int,
        k_longest: int, *, softmax_scale: float, causal: bool, softcap: float,
        deterministic: bool, return_attn_probs: bool,
    ) -> tuple[Tensor, Tensor, None]:  # fmt: skip
        assert return_attn_probs and q_ends.dtype == k_ends.dtype == torch.int32
        assert (q_longest, k_longest) == (int(q_ends.diff().max()), int(k_ends.diff().max()))
        pairs = zip(q_ends.diff().tolist(), k_ends.diff().tolist(), strict=True)
        lengths = list(zip(*pairs, strict=True))
        mask = builders.varlen(lengths[0], lengths[1], causal=causal)
        out, lse = attention(q, k, v, mask, scale=softmax_scale, softcap=softcap, backend="cpu")
        return out, lse.masked_fill(lse == -math.inf, math.inf).T, None

    package = ModuleType("flash_attn")
    package.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setattr(flash2, "refuses", lambda call, slices: None)


def test_flash2_refuses_gradients_that_it_would_drop(packaged: None) -> None:
    q, k, v = inputs(0, 9, 12, dtype=torch.float32)
    mask = AttnSlices.from_list([(0, 4, 0, 5, 1), (6, 9, 7, 12, 1)])
    out, lse = flash2.attention_flash2(q, k, v, mask, scale=0.4)
    expected = attention(q, k, v, mask, scale=0.4, backend="reference")
    torch.testing.assert_close((out, lse), expected, rtol=2e-5, atol=2e-6)
    assert torch.autograd.grad(out.sum(), q, retain_graph=True)[0].isfinite().all()
    with pytest.raises(BackendError, match="no gradient through lse"):
        torch.autograd.grad(lse[:4].sum(), q)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses old parts of it
def test_flash2_compiles_with_its_backward(packaged: None) -> None:
    mask = builders.causal(9)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, mask, backend="flash2")[0].sin()

    tensors = inputs(0, 9, 9, dtype=torch.float32)
    mine = torch.compile(call, fullgraph=True, backend="aot_eager")(*tensors)
    theirs = attention(*tensors, mask, backend="reference")[0].sin()
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-6)
    gradients = [torch.autograd.grad(x.sum(), tensors) for x in (mine, theirs)]
    torch.testing.assert_close(*gradients, rtol=2e-5, atol=5e-6)
