# mypy: disable-error-code="misc"
"""The backends of a CPU while every new buffer holds NaN: nothing reads what nothing wrote."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from magi_world.kernels.attention import AttnSlices, Backend, attention, builders
from tests.kernels.test_attention import compare, inputs, masks

BACKENDS: list[Backend] = ["cpu", "sdpa"]
MASKS = {
    "causal": builders.causal(300),
    "window": builders.sliding_window(300, 40, 9),
    "blocks": builders.block_causal(300, 37, window=3),
    "teacher": builders.teacher_forcing(2, 3, 20, 2),
    "rows-without-keys": AttnSlices.from_list([(3, 120, 2, 90, 1), (150, 180, 200, 300, 2)]),
    "whole-blocks": AttnSlices.from_list(
        [(0, 100, 3, 40, 0), (100, 180, 60, 61, 0), (190, 300, 70, 119, 3)], key_block=60
    ),
}


@contextmanager
def poisoned() -> Iterator[None]:
    """torch fills memory that it hands out, also inside its own operations, with NaN."""
    before = torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all() and torch.ones(3).new_empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("width", [8, 24, 40, 64, 128])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_in_use(backend: Backend, name: str, width: int) -> None:
    heads = {8: (3, 1), 24: (4, 2), 40: (2, 2), 64: (8, 1), 128: (2, 1)}[width]
    tensors = inputs(width, 300, 300, *heads, width=width, dtype=torch.float64)
    with poisoned():
        compare(MASKS[name], tensors, 1, backend, sinks=() if width == 24 else None)


@settings(max_examples=30)
@given(st.one_of(masks(), masks(key_block=8)), st.sampled_from(BACKENDS), st.integers(0, 99))
def test_any_mask(slices: AttnSlices, backend: Backend, seed: int) -> None:
    with poisoned():
        compare(slices, inputs(seed, 13, 24, dtype=torch.float32), seed, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(backend: Backend, dtype: torch.dtype) -> None:
    tensors = inputs(3, 300, 300, dtype=dtype)
    for mask in MASKS.values():
        with poisoned():
            out, lse = attention(*tensors, mask, backend=backend)
            loss = out.float().sum() + lse[lse > -torch.inf].sum()
            results = [out, *torch.autograd.grad(loss, tensors)]
        assert all(x.isfinite().all() for x in results)
