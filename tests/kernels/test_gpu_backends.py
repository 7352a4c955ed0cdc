# mypy: disable-error-code="misc"
"""Every backend of a GPU on the masks in use, by the rule of twice the error of plain torch."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_world.kernels.attention import (
    AttnSlices,
    Backend,
    BackendError,
    BackendMissing,
    attention,
    builders,
)
from magi_world.kernels.attention.reference import dense_mask
from tests.kernels.test_triton import DEVICE, ON_GPU, draw, reference, results

pytestmark = pytest.mark.gpu

BACKENDS: list[Backend] = ["triton", "flash4", "flash2", "flex", "sdpa"]
MASKS = {
    "full": AttnSlices.from_list([(0, 300, 0, 300, 0)]),
    "block-causal": builders.block_causal(300, 60),
    "window": builders.sliding_window(300, 50, 9),
    "varlen": builders.varlen([5, 0, 100, 195], causal=True),
    "teacher": builders.teacher_forcing(1, 3, 50, 2),
    "rows-without-keys": AttnSlices.from_list([(3, 120, 2, 90, 1), (150, 180, 200, 300, 2)]),
}


def plain_torch(
    q: Tensor, k: Tensor, v: Tensor, slices: AttnSlices, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attention in plain operations of the inputs' precision."""
    seen = dense_mask(slices, len(q), len(k)).to(q.device)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (torch.einsum("qhd,khd->hqk", q, k) * 0.4).masked_fill(~seen, -math.inf)
    shares = scores.softmax(-1).masked_fill(~seen, 0.0)
    out = torch.einsum("hqk,khd->qhd", shares, v)
    return out, scores.float().logsumexp(-1).T


@pytest.mark.parametrize("width", [24, 64, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_more_than_twice_the_error(
    backend: Backend, name: str, dtype: torch.dtype, width: int
) -> None:
    if not ON_GPU:
        pytest.skip("needs a CUDA device")
    slices = MASKS[name]
    given = [x.to(dtype) for x in draw(6, (300, 2, width), (300, 1, width), (300, 1, width))]

    def mine(*args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
        return attention(*args, backend=backend, **keywords)

    try:
        found = results(mine, given, slices, 2, scale=0.4)
    except (BackendMissing, BackendError) as refused:
        pytest.skip(str(refused))
    plain = results(plain_torch, given, slices, 2)
    true = results(reference, [x.double() for x in given], slices, 2, scale=0.4)
    for part, x in found.items():
        assert x.device.type == DEVICE.type
        error = (x.double() - true[part]).abs().max()
        allowed = 2 * (plain[part].double() - true[part]).abs().max()
        assert error <= allowed + 1e-6, (part, float(error), float(allowed))
