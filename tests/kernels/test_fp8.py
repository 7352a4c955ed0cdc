"""FP8 products: rounding, the reference, and the card's units where there are any."""

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from magi_world.kernels.fp8 import LARGEST, available, matmul, quantise, rounding

FORMS: list[Literal["reference", "triton"]] = ["triton", "reference"]


def operands(m: int, k: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    q = (torch.randn(m, k) * 50).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    w = (torch.randn(n, k) * 50).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return q, w


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_rounding_is_clamped_and_close(values: list[float]) -> None:
    x = torch.tensor(values)
    q = quantise(x, torch.ones(1)).float()
    assert q.isfinite().all() and q.abs().max() <= LARGEST
    clamped = x.clamp(-LARGEST, LARGEST)
    # half a step of 3 bits, and of bfloat16 before it; below 2^-6 numbers are evenly spaced
    assert ((q - clamped).abs() <= clamped.abs() * 2**-4 * 1.02 + 2**-10).all()


def test_rounding_in_pieces_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, scale = torch.randn(3, 7, 5), torch.rand(1, 5) + 0.1
    whole = quantise(x, scale)
    monkeypatch.setattr(rounding, "_PIECE", 10)
    assert torch.equal(quantise(x, scale).view(torch.uint8), whole.view(torch.uint8))
    assert whole.shape == x.shape


def test_gradients_are_refused_not_dropped() -> None:
    x, scale = torch.randn(3, 5, requires_grad=True), torch.ones(1)
    for function in (quantise, torch.compile(quantise, backend="aot_eager")):
        with pytest.raises(RuntimeError, match="fp8_quantise rounds to eight bits"):
            function(x, scale)
    with torch.no_grad():
        assert not quantise(x, scale).requires_grad
    q, w = operands(5, 32, 16)
    with pytest.raises(RuntimeError, match="fp8_matmul rounds to eight bits"):
        matmul(q, w, (scale, torch.ones(1, requires_grad=True)), torch.float32)


def test_no_rows() -> None:
    assert quantise(torch.zeros(0, 5), torch.ones(1)).shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_reference_is_the_product_of_what_was_rounded(dtype: torch.dtype) -> None:
    q, w = operands(5, 32, 16)
    scales = (torch.tensor([0.01]), torch.tensor([0.02]))
    exact = (q.double() @ w.double().T) * 0.01 * 0.02
    got = matmul(q, w, scales, dtype)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), exact, rtol=1e-2 if dtype != torch.float32 else 1e-5,
                               atol=1e-3)  # fmt: skip


def test_a_backend_that_is_not_there_is_named() -> None:
    q, w = operands(5, 32, 16)
    assert available(q, w, torch.float32) == ["reference"]
    scales = (torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match=r"'scaled_mm' is not one of \['reference'\]"):
        matmul(q, w, scales, torch.float32, backend="scaled_mm")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_card_agrees_with_the_reference(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    q, w = (x.cuda() for x in operands(33, 64, 48))
    scales = (torch.tensor([0.01]).cuda(), torch.tensor([0.02]).cuda())
    if "scaled_mm" not in available(q, w, dtype):
        pytest.skip("the card has no FP8 units")
    fast = matmul(q, w, scales, dtype, backend="scaled_mm")
    slow = matmul(q, w, scales, dtype, backend="reference")
    torch.testing.assert_close(fast, slow, rtol=1e-2, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_our_kernels_agree_with_the_emulation(dtype: torch.dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    q, w = (x.cuda() for x in operands(33, 70, 50))  # no multiples of 16
    if "triton" not in available(q, w, dtype):
        pytest.skip("the card has no FP8 units, or triton is not installed")
    x = (torch.randn(7, 1500) * 300).to(dtype).cuda()
    for scale in (torch.full((1,), 0.7).cuda(), (torch.rand(1500) + 0.1).cuda()):
        mine, theirs = (quantise(x, scale, backend=b).view(torch.uint8) for b in FORMS)
        assert torch.equal(mine, theirs)
    scales = (torch.full((1,), 0.01).cuda(), torch.full((1,), 0.02).cuda())
    mine, theirs = (matmul(q, w, scales, dtype, backend=b) for b in FORMS)
    torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=1e-3)
