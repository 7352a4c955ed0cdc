"""Attention as a registered operation: compiled, differentiated, and what a mask's number is."""

import copy
import gc
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_world.kernels.attention import (
    AttnSlices,
    BackendError,
    DeviceSlices,
    attention,
    builders,
    default_backend,
    explain,
)
from magi_world.kernels.attention.handles import mask_of

# torch's compiler uses parts of torch that torch calls deprecated
compiles = pytest.mark.filterwarnings("ignore::DeprecationWarning")
BACKENDS: list[Any] = ["reference", "cpu", "sdpa"]


def draw(seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(12, 4, 8), (16, 2, 8), (16, 2, 8), (4,)]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


MASK = AttnSlices.from_list([(0, 6, 0, 9, 1), (6, 11, 4, 16, 0)])


def gradients(function: Any, given: list[Tensor], **keywords: Any) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in given]
    out, lse = function(*leaves[:3], MASK, sink=leaves[3], **keywords)
    loss = out.square().sum() + lse.masked_fill(lse == -math.inf, 0.0).sin().sum()
    return [out, lse, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_through_the_operation(backend: str) -> None:
    ops = torch.ops.magi_world

    def registered(q: Tensor, k: Tensor, v: Tensor, slices: AttnSlices, *, sink: Tensor) -> Any:
        return ops.attention(q, k, v, sink, slices.handle, 0.5, 0.0, False, backend)

    given = draw(dtype=torch.float64)
    theirs = gradients(attention, given, scale=0.5, backend="reference")
    torch.testing.assert_close(gradients(registered, given), theirs, rtol=1e-9, atol=1e-9)


@compiles
@pytest.mark.parametrize("backend", BACKENDS)
def test_registration(backend: str) -> None:
    leaves = [x.requires_grad_() for x in draw(1)]
    op = torch.ops.magi_world.attention.default
    torch.library.opcheck(op, (*leaves, MASK.handle, 0.5, 0.0, False, backend))


@compiles
@pytest.mark.parametrize("backend", ["auto", "cpu"])
def test_one_graph_serves_every_mask(backend: Any) -> None:
    seen = 0

    def count(graph: Any, _: Any) -> Any:
        nonlocal seen
        seen += 1
        return graph

    q, k, v, _ = draw(2)

    def call(slices: Any) -> Any:
        return attention(q, k, v, slices, backend=backend)

    compiled = torch.compile(call, fullgraph=True, backend=count)
    masks = [MASK, builders.causal(12, 16), builders.full(12, 16), AttnSlices.from_list([])]
    for mask in masks:
        torch.testing.assert_close(compiled(mask), call(mask))
    assert seen <= 2  # the second mask makes a number of what was a constant
    seen = 0
    torch.compiler.reset()
    refilled = DeviceSlices(num_queries=12, num_keys=16, max_slices=4, max_tiles=8)
    for mask in masks:
        refilled.fill(mask)
        torch.testing.assert_close(compiled(refilled), call(mask))
    assert seen == 1


@compiles
def test_compiled_gradients() -> None:
    given = draw(3)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    theirs = gradients(attention, given, backend="reference")
    torch.testing.assert_close(gradients(compiled, given), theirs, rtol=1e-4, atol=1e-5)


@compiles
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_on_a_gpu(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    given = [x.cuda().to(dtype) if x.ndim == 3 else x.cuda() for x in draw(3)]
    compiled = torch.compile(attention, fullgraph=True)
    rtol, atol = (1e-4, 1e-5) if dtype == torch.float32 else (0.05, 0.02)
    theirs = gradients(attention, given, backend="reference")
    torch.testing.assert_close(gradients(compiled, given), theirs, rtol=rtol, atol=atol)
    q, k, v, _ = given
    refilled = DeviceSlices(num_queries=12, num_keys=16, max_slices=4, max_tiles=8, device="cuda")
    for mask in (MASK, builders.causal(12, 16)):
        refilled.fill(mask)
        mine = torch.compile(attention, fullgraph=True)(q, k, v, refilled)
        torch.testing.assert_close(mine, attention(q, k, v, mask), rtol=rtol, atol=atol)


def test_a_number_means_one_mask() -> None:
    mask = builders.causal(5)
    others = [pickle.loads(pickle.dumps(mask)), copy.deepcopy(mask), copy.copy(mask)]
    assert len({mask.handle, *(other.handle for other in others)}) == 4
    assert all(other.rows == mask.rows for other in others)
    assert mask_of(others[0].handle) is others[0]
    assert [s.slices for s in others[0].segments] == [s.slices for s in mask.segments]
    gone = builders.causal(6).handle
    gc.collect()
    with pytest.raises(ValueError, match=f"the mask {gone} is gone"):
        mask_of(gone)


def test_the_backward_keeps_the_mask() -> None:
    q, k, v, _ = (x.requires_grad_() for x in draw(4))
    out, _ = attention(q, k, v, builders.causal(12, 16))
    gc.collect()
    out.sum().backward()
    assert q.grad is not None and q.grad.isfinite().all()


def test_a_default_for_the_process() -> None:
    q, k, v, _ = draw(5)
    with default_backend("reference"):
        expected = attention(q, k, v, MASK, backend="reference")
        assert torch.equal(attention(q, k, v, MASK)[0], expected[0])
        assert explain(q, MASK).backend == "reference"
        with default_backend("cpu"):
            assert explain(q, MASK).backend == "cpu"
    assert explain(q, MASK).backend == "sdpa"
    with default_backend("sdpa"), pytest.raises(BackendError, match="takes no softcap"):
        attention(q, k, v, MASK, softcap=1.0)
    with pytest.raises(ValueError, match="backend 'dense' is not one of"):
        with default_backend("dense"):  # type: ignore[arg-type]
            pass
