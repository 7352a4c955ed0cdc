# mypy: disable-error-code="arg-type,call-arg,misc,no-any-return"
"""The fused operations against their references: values, gradients, registration, compilation."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_world.kernels.modulate import gate_norm_residual
from magi_world.kernels.rope import norm_rotary, norm_rotary_write, rotate
from magi_world.kernels.rope.write import CacheRows, Norm
from magi_world.kernels.swiglu import silu_multiply

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
pytestmark = [pytest.mark.gpu] * ON_GPU
# triton's interpreter counts on numpy to give inf and nan quietly
quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")
# torch's compiler uses parts of torch that torch calls deprecated
compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning")
EPS = 1e-6


def draw(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def modulate_inputs(seed: int, G: int, n: int, E: int) -> list[Tensor]:
    return draw(seed, (G * n, E), (G * n, E), (G, E), (E,), (E,))


def rotary_inputs(seed: int, T: int, H: int, D: int) -> list[Tensor]:
    x, weight, bias, angles = draw(seed, (T, H, D), (D,), (D,), (T, 3 * (D // 8)))
    return [x, weight, bias, angles.cos(), angles.sin()]


CASES: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "modulate": (
        lambda *x, **k: gate_norm_residual(*x, EPS, **k), modulate_inputs(0, 3, 5, 24)
    ),
    "rotary": (lambda *x, **k: norm_rotary(*x, EPS, **k), rotary_inputs(1, 7, 2, 24)),
    "rotary-128": (lambda *x, **k: norm_rotary(*x, EPS, **k), rotary_inputs(2, 35, 1, 128)),
    "swiglu": (silu_multiply, draw(3, (5, 3, 46))),
}  # fmt: skip


def gradients(
    function: Callable[..., Tensor], given: list[Tensor], **keywords: Any
) -> list[Tensor]:
    """The result and the gradients of all inputs."""
    leaves = [x.detach().clone().requires_grad_() for x in given]
    out = function(*leaves, **keywords)
    (towards,) = draw(9, tuple(out.shape))
    return [out, *torch.autograd.grad((out.float() * towards).sum(), leaves)]


@quiet
@pytest.mark.parametrize("name", CASES)
def test_triton_equals_the_reference(name: str) -> None:
    function, given = CASES[name]
    mine = gradients(function, given, backend="triton")
    theirs = gradients(function, given, backend="reference")
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-5)


@quiet
@settings(max_examples=15)
@given(st.integers(1, 3), st.integers(1, 40), st.sampled_from([8, 24, 33, 130]), st.integers(0, 99))
def test_any_number_of_rows(G: int, n: int, E: int, seed: int) -> None:
    given = modulate_inputs(seed, G, n, E)
    mine = gate_norm_residual(*given, EPS, backend="triton")
    torch.testing.assert_close(mine, gate_norm_residual(*given, EPS, backend="reference"))
    x = given[0]
    halves = torch.cat([x, x.flip(0)], dim=-1)
    torch.testing.assert_close(
        silu_multiply(halves, backend="triton"), silu_multiply(halves, backend="reference")
    )


@quiet
@pytest.mark.parametrize("dtype", [torch.float16] + [torch.bfloat16] * ON_GPU)
@pytest.mark.parametrize("name", CASES)
def test_half_precision_errs_no_more_than_torch_does(name: str, dtype: torch.dtype) -> None:
    function, given = CASES[name]
    low = [x.to(dtype) for x in given]
    true = gradients(function, [x.double() for x in low], backend="reference")
    plain = gradients(function, low, backend="reference")
    for mine, theirs, exact in zip(
        gradients(function, low, backend="triton"), plain, true, strict=True
    ):
        assert mine.dtype == dtype
        allowed = 2 * (theirs.double() - exact).abs().max()
        assert (mine.double() - exact).abs().max() <= allowed + 1e-6


def cache_call(dtype: torch.dtype = torch.float32, T: int = 13) -> dict[str, Any]:
    q, weight, bias, cos, sin = rotary_inputs(4, T, 4, 24)
    k, v, k_weight, k_bias = draw(5, (T, 2, 24), (T, 2, 24), (24,), (24,))
    keys, values = draw(6, (40, 2, 24), (40, 2, 24), dtype=dtype)
    rows = torch.randperm(40, generator=torch.Generator().manual_seed(7))[:T].to(DEVICE)
    return {
        "q": q.to(dtype), "k": k.to(dtype), "v": v.to(dtype),
        "norms": (Norm(weight, bias), Norm(k_weight, k_bias)), "rotary": (cos, sin),
        "cache": CacheRows(keys, values, rows),
    }  # fmt: skip


def write(call: dict[str, Any], backend: Any) -> Tensor:
    return norm_rotary_write(
        call["q"], call["k"], call["v"], call["norms"], call["rotary"], EPS, call["cache"],
        backend=backend,
    )  # fmt: skip


@quiet
@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_cache_is_written_where_told(backend: str, dtype: torch.dtype) -> None:
    call = cache_call(dtype)
    cache = call["cache"]
    before = cache.keys.clone(), cache.values.clone()
    out = write(call, backend)
    norms, rotary = call["norms"], call["rotary"]
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-3, "atol": 2e-3}
    torch.testing.assert_close(
        out, norm_rotary(call["q"], *norms[0], *rotary, EPS, backend="reference"), **close
    )
    before[0][cache.rows] = norm_rotary(call["k"], *norms[1], *rotary, EPS, backend="reference")
    before[1][cache.rows] = call["v"]
    torch.testing.assert_close(cache.keys, before[0], **close)
    assert torch.equal(cache.values, before[1])
    owners = {x.untyped_storage().data_ptr() for x in (call["q"], cache.keys, cache.values)}
    assert out.untyped_storage().data_ptr() not in owners


def test_writing_refuses_gradients() -> None:
    call = cache_call()
    call["q"].requires_grad_()
    with pytest.raises(RuntimeError, match="norm_rotary_write writes to its arguments"):
        write(call, "reference")
    with torch.no_grad():
        write(call, "reference")


@quiet
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_cache_that_kernels_would_misread_is_refused(backend: str) -> None:
    call = cache_call()
    keys, values, rows = call["cache"]
    wide = torch.zeros(*keys.shape[:2], 2 * keys.shape[2], device=DEVICE)[..., ::2]
    for cache, words in (
        (CacheRows(keys.half(), values, rows), "expected one dtype"),
        (CacheRows(keys, values.half(), rows), "expected one dtype"),
        (CacheRows(wide, values, rows), "channels must lie side by side"),
        (CacheRows(keys, wide, rows), "channels must lie side by side"),
    ):
        with pytest.raises(ValueError, match=words):
            write(call | {"cache": cache}, backend)


@quiet
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_autograd_notices_what_the_write_overwrites(backend: str) -> None:
    call = cache_call()
    factor = torch.ones_like(call["cache"].keys, requires_grad=True)
    product = (factor * call["cache"].keys).sum()
    with torch.no_grad():
        write(call, backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@quiet
def test_poisoned_buffers_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.empty

    def poisoned(*args: Any, **keywords: Any) -> Tensor:
        made = real(*args, **keywords)
        return made.fill_(float("nan")) if made.is_floating_point() else made

    monkeypatch.setattr(torch, "empty", poisoned)
    results = [f(*x, backend="triton") for f, x in CASES.values()] + [write(cache_call(), "triton")]
    monkeypatch.undo()
    assert all(x.isfinite().all() for x in results)


def registered() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every registered operation and a call of it."""
    ops = torch.ops.magi_world
    call = cache_call()
    grown = [[y.requires_grad_() for y in x] for x in (
        modulate_inputs(0, 2, 3, 16), rotary_inputs(1, 5, 2, 16), draw(2, (4, 12))
    )]  # fmt: skip
    cache = call["cache"]
    written = (
        call["q"], call["k"], call["v"], *call["norms"][0], *call["norms"][1], *call["rotary"],
        cache.rows, EPS, cache.keys, cache.values, "reference",
    )  # fmt: skip
    x, scale = draw(8, (3, 32))[0], torch.full((32,), 0.01, device=DEVICE)
    q = ops.fp8_quantise(x, scale, "reference")
    return {
        "modulate": (ops.gate_norm_residual, (*grown[0], EPS, "reference")),
        "rotary": (ops.norm_rotary, (*grown[1], EPS, "reference")),
        "swiglu": (ops.silu_multiply, (*grown[2], "reference")),
        "write": (ops.norm_rotary_write, written),
        "quantise": (ops.fp8_quantise, (x, scale, "reference")),
        "matmul": (ops.fp8_matmul, (q, q, scale[:1], scale[:1], torch.float32, "reference")),
    }


@compiles
@pytest.mark.parametrize("name", registered())
def test_registration(name: str) -> None:
    op, arguments = registered()[name]
    # torch's comparisons do not know float8, which the one returns and the other takes
    some = {"quantise": ("test_schema", "test_faketensor"), "matmul": ("test_faketensor",)}
    tests = {"test_utils": some[name]} if name in some else {}
    torch.library.opcheck(op.default, arguments, **tests)


@compiles
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_graph_holds_them_all(backend: str) -> None:
    """torch.compile takes the public functions and the registered operations without a break."""
    call = cache_call(T=12)
    cache = call["cache"]
    (h, x, branch, gate) = draw(1, (12, 48), (12, 24), (12, 24), (3, 24))

    def step(h: Tensor, x: Tensor, branch: Tensor, gate: Tensor, form: str) -> Tensor:
        ops = torch.ops.magi_world
        weight, bias = call["norms"][0]
        if form == "public":
            wide = silu_multiply(h) + gate_norm_residual(x, branch, gate, weight, bias, EPS)
            return wide + write(call, "auto")[:, 0]
        wide = ops.silu_multiply(h, "auto")
        wide = wide + ops.gate_norm_residual(x, branch, gate, weight, bias, EPS, "auto")
        return wide + write(call, "auto")[:, 0]

    compiled = torch.compile(step, fullgraph=True, dynamic=False, backend=backend)
    for form in ("public", "op"):
        with torch.no_grad():
            cache.keys.zero_()
            theirs = step(h, x, branch, gate, form)
            kept = cache.keys.clone()
            cache.keys.zero_()
            mine = compiled(h, x, branch, gate, form)
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cache.keys, kept, rtol=1e-5, atol=1e-5)


@compiles
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_gradients(backend: str) -> None:
    def loss(*x: Tensor) -> Tensor:
        out: Tensor = torch.ops.magi_world.norm_rotary(*x, EPS, "reference")
        return out

    given = CASES["rotary"][1]
    compiled = torch.compile(loss, fullgraph=True, dynamic=False, backend=backend)
    mine = gradients(compiled, given)
    theirs = gradients(norm_rotary, [*given], eps=EPS)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_what_cannot_run_is_named() -> None:
    with pytest.raises(ValueError, match="backend 'cuda' is not one of"):
        silu_multiply(torch.zeros(2, 4), backend="cuda")
    with pytest.raises(ValueError, match="no two halves"):
        silu_multiply(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="takes float32, float16 and bfloat16, not torch.float64"):
        silu_multiply(torch.zeros(2, 4, dtype=torch.float64, device=DEVICE), backend="triton")


def test_the_reference_takes_float64() -> None:
    x = [y.double() for y in rotary_inputs(1, 3, 1, 16)]
    normed = (x[0] - x[0].mean(-1, keepdim=True)) / (
        x[0].var(-1, correction=0, keepdim=True) + EPS
    ).sqrt()
    expected = rotate(normed * (1 + x[1]) + x[2], x[3], x[4])
    torch.testing.assert_close(norm_rotary(*x, EPS), expected)


@pytest.mark.parametrize("target", [80, 89, 90, 100])
def test_kernels_compile_without_spills(target: int, tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    environment.pop("TRITON_INTERPRET", None)
    program = Path(__file__).with_name("compile_fused.py")
    done = subprocess.run(
        [sys.executable, program, str(target)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    rows = {row["kernel"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert all(row["spilled"] == 0 for row in rows.values()), rows
    quantised = {name for name in rows if name.startswith("fp8")}
    assert len(rows) - len(quantised) == 6
    assert quantised == (
        set() if target < 89 else {"fp8 quantise", "fp8 matmul 16", "fp8 matmul 4096"}
    )
    for name in quantised:
        assert rows[name]["float8"] or "matmul" not in name, rows[name]
        assert rows[name]["newest"] > 0 or "quantise" in name, rows[name]
