# mypy: disable-error-code="arg-type,misc"
"""How the backend ``sdpa`` cuts a mask, and what it does where torch keeps its log-sum-exp."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_world.evaluation.peak_memory import peak_bytes
from magi_world.kernels.attention import AttnSlices, attention, builders, sdpa, sdpa_plan
from magi_world.kernels.attention.autograd import Settings
from magi_world.kernels.attention.sdpa_plan import Group, plan_of
from tests.kernels.test_attention import compare, inputs, masks

CPU = torch.device("cpu")


@contextmanager
def narrow() -> Iterator[None]:
    """Limits that small masks reach."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdpa_plan, "ROWS", (1, 4))
        patch.setattr(sdpa_plan, "CELLS", 20)
        patch.setattr(sdpa_plan, "TAKEN", 8)
        patch.setattr(sdpa_plan, "KEPT", (50, 30))
        patch.setattr(sdpa, "SCORES", 60)
        yield


@settings(max_examples=40)
@given(
    st.one_of(masks(), masks(key_block=8)), st.integers(0, 99), st.sampled_from([(2, 2), (4, 2)])
)
def test_cut_small_it_is_the_same(slices: AttnSlices, seed: int, heads: tuple[int, int]) -> None:
    with narrow():
        compare(slices, inputs(seed, 13, 24, *heads), seed, "sdpa", sinks=())


def mask_cells(group: Group) -> int:
    return 0 if group.left is None else group.count * group.left.shape[2] * group.num_keys


@pytest.mark.parametrize(
    "mask",
    [
        builders.causal(4096),
        builders.sliding_window(4096, 1024, 7),
        builders.block_causal(4096, 16, window=64),
        AttnSlices.from_list([(0, 2048, 0, 4096, 3), (2048, 4096, 0, 100, 0)]),
    ],
    ids=["causal", "window", "narrow", "bi-causal"],
)
def test_limits_hold(mask: AttnSlices) -> None:
    groups = plan_of(mask, CPU).groups
    for group in groups:
        assert mask_cells(group) <= sdpa_plan.CELLS
        assert group.k_start is not None or group.key_rows().numel() <= sdpa_plan.TAKEN
        group.bias(torch.float32)
    kept = [sum(x.numel() for x in group.kept.values()) for group in groups]
    assert sum(kept) <= sdpa_plan.KEPT[0]
    indices = sum(0 if group.kept_keys is None else group.kept_keys.numel() for group in groups)
    assert indices <= sdpa_plan.KEPT[1]
    assert sum(group.count * group.num_queries for group in groups) == 4096


def test_what_many_calls_need_is_kept() -> None:
    """A batch of slots with histories, as a closed loop has them: one group, made once."""
    mask = AttnSlices.from_list(
        [(16 * i, 16 * (i + 1), 256 * i, 256 * i + 32, 0) for i in range(64)], key_block=256
    )
    (group,) = plan_of(mask, CPU).groups
    assert group.count == 64 and group.bias(torch.float32) is group.bias(torch.float32)


def elsewhere(
    tensors: tuple[Tensor, ...], slices: AttnSlices, sink: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """What other devices run, on the CPU."""
    q, k, v = tensors[:3]
    return sdpa._elsewhere(q, k, v, sink, Settings(0.4, 0.0, plan_of(slices, CPU)))


@settings(max_examples=40)
@given(masks(), st.integers(0, 99), st.booleans())
def test_on_other_devices(slices: AttnSlices, seed: int, sink: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors: tuple[Tensor, ...] = inputs(seed, 13, 24)
    extra = torch.randn(4, generator=generator, dtype=torch.float64) if sink else None
    towards = torch.randn(13, 4, generator=generator, dtype=torch.float64)
    found = []
    with narrow():  # the backward cuts again
        for out, lse in (
            elsewhere(tensors, slices, extra),
            attention(*tensors[:3], slices, scale=0.4, sink=extra, backend="reference"),
        ):
            loss = out.square().sum() + (lse * towards)[lse > -math.inf].sum()
            gradients = torch.autograd.grad(loss, tensors) if slices.area() else ()
            found.append((out, lse, *gradients))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_memory_on_other_devices(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa, "SCORES", 1 << 17)
    peaks = []
    for tokens in (2048, 4096):
        tensors = inputs(0, tokens, tokens, 1, 1, dtype=torch.float32)
        slices = getattr(builders, mask)(tokens)

        def both(tensors: tuple[Tensor, ...] = tensors, slices: AttnSlices = slices) -> None:
            out, lse = elsewhere(tensors, slices)
            torch.autograd.grad(out.sum() + lse.sum(), tensors)

        peaks.append(peak_bytes(both))
    assert peaks[1] < 2.2 * peaks[0] and peaks[1] < 4096**2, "less than a byte a cell"
