"""Attention where layers of several precisions meet, under `torch.autocast`."""

import pytest
import torch

from magi_world.kernels.attention import AttnSlices, attention


def test_autocast_computes_in_float32() -> None:
    """Under autocast linear layers give bfloat16 and norms float32; here they meet."""
    slices = AttnSlices.from_list([(0, 4, 0, 6, 0)])
    q, k, v = torch.randn(4, 2, 8), torch.randn(6, 1, 8), torch.randn(6, 1, 8).bfloat16()
    with pytest.raises(ValueError, match="one floating dtype"):
        attention(q, k, v, slices)
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = attention(q, k, v, slices)
    expected, expected_lse = attention(q, k, v.float(), slices)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected) and torch.equal(lse, expected_lse)


@pytest.mark.gpu
def test_autocast_on_a_gpu_computes_in_its_dtype() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    slices = AttnSlices.from_list([(0, 4, 0, 6, 0)])
    q, k, v = (x.cuda() for x in (torch.randn(4, 2, 8), torch.randn(6, 1, 8), torch.randn(6, 1, 8)))
    with torch.autocast("cuda", torch.bfloat16):
        out, _ = attention(q, k, v.bfloat16(), slices)
    expected, _ = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), slices)
    assert out.dtype == torch.bfloat16 and torch.equal(out, expected)
