# mypy: disable-error-code="arg-type,misc"
"""What a launch of a Triton kernel rests on: its device, and shapes that fit together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_world.kernels import fp8
from magi_world.kernels.attention import attention, builders
from magi_world.kernels.modulate import gate_norm_residual
from magi_world.kernels.rope import norm_rotary, norm_rotary_write
from magi_world.kernels.rope.write import CacheRows, Norm
from magi_world.kernels.swiglu import silu_multiply
from tests.kernels.test_fused import EPS, ON_GPU, cache_call, modulate_inputs, rotary_inputs, write
from tests.kernels.test_triton import quiet

pytest.importorskip("triton")


def ran(function: Callable[..., Any], given: list[Tensor], **keywords: Any) -> None:
    """Forward and backward."""
    leaves = [x.detach().requires_grad_() for x in given]
    out = function(*leaves, **keywords)
    torch.autograd.grad((out[0] if isinstance(out, tuple) else out).sum(), leaves)


CALLS: dict[str, tuple[Callable[[], Any], int]] = {
    "attention": (
        lambda: ran(
            lambda *x: attention(*x, builders.causal(9), backend="triton"),
            [torch.randn(9, 1, 8) for _ in range(3)],
        ),
        3,
    ),
    "modulate": (
        lambda: ran(
            gate_norm_residual, modulate_inputs(0, 2, 3, 8), eps=EPS, backend="triton"
        ),
        1,
    ),
    "rotary": (lambda: ran(norm_rotary, rotary_inputs(1, 5, 2, 16), eps=EPS, backend="triton"), 1),
    "write": (lambda: write(cache_call(), "triton"), 1),
    "swiglu": (lambda: ran(silu_multiply, [torch.randn(3, 8)], backend="triton"), 2),
}  # fmt: skip


@quiet
@pytest.mark.skipif(ON_GPU, reason="watches the interpreter")
@pytest.mark.parametrize("name", CALLS)
def test_kernels_start_on_the_device_of_their_tensors(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import GridExecutor

    call, kernels = CALLS[name]
    inside = launches = 0
    real = GridExecutor.__call__

    @contextmanager
    def device_of(x: Tensor) -> Iterator[None]:
        nonlocal inside
        inside += 1
        yield
        inside -= 1

    def launch(self: Any, *args: Any, **keywords: Any) -> Any:
        nonlocal launches
        assert inside == 1
        launches += 1
        return real(self, *args, **keywords)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(GridExecutor, "__call__", launch)
    call()
    assert launches == kernels


X, E1 = torch.zeros(6, 8), torch.zeros(8)
HEADS, D1, ANGLES = torch.zeros(6, 2, 8), torch.zeros(8), torch.zeros(6, 4)
NORM, ROWS = Norm(D1, D1), torch.arange(6)
Q8 = torch.zeros(4, 32).to(torch.float8_e4m3fn)
WRONG: dict[str, tuple[Callable[[Any], Any], str]] = {
    "tokens without a gate": (
        lambda b: gate_norm_residual(X, X, torch.zeros(4, 8), E1, E1, EPS, backend=b),
        r"gate \(4, 8\): expected \[G, 8\] with G a divisor of the 6 tokens",
    ),
    "no gate": (
        lambda b: gate_norm_residual(X, X, torch.zeros(0, 8), E1, E1, EPS, backend=b), "gate"
    ),
    "a short branch": (
        lambda b: gate_norm_residual(X, X[:5], X[:2], E1, E1, EPS, backend=b), r"branch \(5, 8\)"
    ),
    "a narrow weight": (
        lambda b: gate_norm_residual(X, X, X[:2], E1[:7], E1[:7], EPS, backend=b),
        r"weight \(7,\)",
    ),
    "a short table": (
        lambda b: norm_rotary(HEADS, D1, D1, ANGLES[:5], ANGLES[:5], EPS, backend=b),
        r"cosines \(5, 4\)",
    ),
    "a wide table": (
        lambda b: norm_rotary(
            HEADS, D1, D1, torch.zeros(6, 5), torch.zeros(6, 5), EPS, backend=b
        ),
        "R at most 4",
    ),
    "a narrow norm": (
        lambda b: norm_rotary(HEADS, D1[:4], D1[:4], ANGLES, ANGLES, EPS, backend=b),
        r"weight \(4,\)",
    ),
    "few rows of the cache": (
        lambda b: norm_rotary_write(
            HEADS, HEADS, HEADS, (NORM, NORM), (ANGLES, ANGLES), EPS,
            CacheRows(HEADS.clone(), HEADS.clone(), ROWS[:5]), backend=b,
        ),
        r"rows \(5,\)",
    ),
    "a narrow cache": (
        lambda b: norm_rotary_write(
            HEADS, HEADS, HEADS, (NORM, NORM), (ANGLES, ANGLES), EPS,
            CacheRows(torch.zeros(9, 2, 4), torch.zeros(9, 2, 4), ROWS), backend=b,
        ),
        r"cache \(9, 2, 4\)",
    ),
    "some scales": (lambda b: fp8.quantise(X, torch.ones(3), backend=b), r"scale \(3,\)"),
    "an unknown form": (lambda b: fp8.quantise(X, E1, backend="nonsense"), "'nonsense' is not one"),
    "another inner size": (
        lambda b: fp8.matmul(Q8, Q8[:, :16], (E1[:1], E1[:1]), torch.float32, backend=b),
        r"w \(4, 16\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("name", WRONG)
def test_shapes_that_do_not_fit_are_named(name: str, backend: str) -> None:
    """A kernel would read beyond the end of a tensor."""
    call, words = WRONG[name]
    with pytest.raises(ValueError, match=words):
        call(backend)
