# mypy: disable-error-code="arg-type,misc"
"""Sinks at their edge: a head whose sinks are -inf, or that has none, is a head without a sink."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_world.kernels.attention import AttnSlices, attention
from magi_world.kernels.attention.autograd import add_sink, joined_sink
from tests.kernels.test_attention import inputs, loop
from tests.kernels.test_triton import DEVICE, quiet

# rows 0, 4 and 5 see no key
MASK = AttnSlices.from_list([(1, 4, 0, 5, 1)])
NONE = -math.inf
SINKS = {
    "one head": [NONE, 0.5, -1.0, NONE],
    "some of several": [[NONE, 0.5, NONE, NONE], [0.3, NONE, NONE, 1.0]],
    "no sinks": [[]],
}


def drawn(name: str, dtype: torch.dtype) -> Tensor:
    sink = torch.tensor(SINKS[name], dtype=dtype)
    return sink.reshape(0, 4) if name == "no sinks" else sink


@pytest.mark.parametrize("name", SINKS)
def test_the_reference_is_the_definition(name: str) -> None:
    q, k, v = (x.detach() for x in inputs(0, 6, 5))
    sink = drawn(name, torch.float64)
    seen = torch.zeros(6, 5, dtype=torch.bool)
    for row, keys in ((1, 3), (2, 4), (3, 5)):
        seen[row, :keys] = True
    mine = attention(q, k, v, MASK, scale=0.4, sink=sink, backend="reference")
    torch.testing.assert_close(mine, loop(q, k, v, seen, 0.4, 0.0, sink))


@quiet
@pytest.mark.parametrize("name", SINKS)
@pytest.mark.parametrize("backend", ["cpu", "sdpa", "flex", "triton"])
def test_backends_equal_the_reference(backend: Any, name: str) -> None:
    tensors = [*inputs(1, 6, 5, dtype=torch.float32), drawn(name, torch.float32)]
    if backend == "triton":  # which its interpreter runs where there is no GPU
        tensors = [x.detach().to(DEVICE) for x in tensors]
    tensors = [x.requires_grad_() for x in tensors]

    def found(backend: Any) -> tuple[list[Tensor], Tensor]:
        out, lse = attention(*tensors[:3], MASK, scale=0.4, sink=tensors[3], backend=backend)
        return [out, lse], out.square().sum() + lse[lse > NONE].sin().sum()

    if backend == "flex":  # it has no backward on a CPU
        tensors = [x.detach() for x in tensors]
    (mine, loss), (theirs, expected) = found(backend), found("reference")
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=2e-6)
    if backend == "flex":
        return
    gradients = torch.autograd.grad(loss, tensors)
    assert all(x.isfinite().all() for x in gradients)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected, tensors), rtol=2e-5, atol=5e-6
    )


def test_gradients_of_a_sink_that_is_added_after_the_fact() -> None:
    """As the backends do that know no sink."""
    lse = torch.tensor([[NONE, 0.2], [1.0, NONE]], dtype=torch.float64, requires_grad=True)
    out = torch.tensor([[[0.0], [0.4]], [[0.7], [0.0]]], dtype=torch.float64, requires_grad=True)
    sinks = torch.tensor([[NONE, 0.5], [NONE, NONE]], dtype=torch.float64, requires_grad=True)
    mine, total = add_sink(out, lse, joined_sink(sinks, 2, torch.float64))
    torch.testing.assert_close(total[0, 0].item(), NONE)
    torch.testing.assert_close(total[1], torch.tensor([1.0, 0.5]).double())
    loss = mine.sum() + total[total > NONE].sum()
    d_lse, d_out, d_sinks = torch.autograd.grad(loss, (lse, out, sinks))
    taken = math.exp(0.5) / (math.exp(0.2) + math.exp(0.5))  # of row 0, head 1, by the sink
    expected = torch.tensor([[0.0, 1 - taken + 0.4 * taken * (1 - taken)], [1.0, 0.0]]).double()
    torch.testing.assert_close(d_lse, expected)
    assert d_out.isfinite().all()
    torch.testing.assert_close(
        d_sinks, torch.tensor([[0.0, taken - 0.4 * taken * (1 - taken) + 1], [0.0, 0.0]]).double()
    )
