# mypy: disable-error-code="arg-type,call-arg,misc,unused-ignore"
"""The backends against each other, against a loop that a human can check, and at their edges."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_world.kernels.attention import AttnSlices, Backend, BackendError, SliceError, attention
from magi_world.kernels.attention.geometry import Slice
from magi_world.kernels.attention.reference import dense_mask

ON_CPU: list[Backend] = ["reference", "cpu", "sdpa"]
HALVES = [torch.float16, torch.bfloat16]


def inputs(
    seed: int,
    queries: int,
    keys: int,
    heads: int = 4,
    groups: int = 2,
    width: int = 8,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(rows: int, heads: int) -> Tensor:
        x = torch.randn(rows, heads, width, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_()

    return draw(queries, heads), draw(keys, groups), draw(keys, groups)


@st.composite
def masks(
    draw: st.DrawFn, *, queries: int = 13, keys: int = 24, key_block: int | None = None
) -> AttnSlices:
    """Random masks of all four types in which no cell is covered twice."""
    rows: list[Slice] = []
    for _ in range(draw(st.integers(0, 6))):
        q_start, q_end = sorted(draw(st.tuples(*[st.integers(0, queries)] * 2)))
        first, size = 0, keys
        if key_block is not None:
            first, size = key_block * draw(st.integers(0, keys // key_block - 1)), key_block
        k_start, k_end = sorted(draw(st.tuples(*[st.integers(first, first + size)] * 2)))
        rows.append((q_start, q_end, k_start, k_end, draw(st.integers(0, 3))))
        try:
            AttnSlices.from_list(rows, key_block=key_block)
        except SliceError:
            rows.pop()
    return AttnSlices.from_list(rows, key_block=key_block)


def loop(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, softcap: float, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Softmax by its definition, one row and head at a time."""
    out, lse = torch.zeros_like(q), torch.full(q.shape[:2], -math.inf, dtype=q.dtype)
    share = q.shape[1] // k.shape[1]
    for row in range(q.shape[0]):
        for head in range(q.shape[1]):
            seen = mask[row].nonzero().flatten()
            scores = k[seen, head // share] @ q[row, head] * scale
            if softcap:
                scores = softcap * (scores / softcap).tanh()
            total = scores.exp().sum()
            if sink is not None:
                total = total + sink.reshape(-1, q.shape[1])[:, head].exp().sum()
            if total > 0:
                lse[row, head] = total.log()
                out[row, head] = (scores.exp() / total) @ v[seen, head // share]
    return out, lse


@settings(max_examples=40)
@given(
    masks(),
    st.integers(0, 99),
    st.sampled_from([0.0, 1.5]),
    st.sampled_from([None, (4,), (3, 4)]),
    st.sampled_from([None, 0.7]),
)
def test_reference_is_the_definition(
    slices: AttnSlices, seed: int, softcap: float, sinks: Any, scale: float | None
) -> None:
    q, k, v = (x.detach() for x in inputs(seed, 13, 24))
    sink = None if sinks is None else torch.randn(sinks, generator=torch.manual_seed(seed)).double()
    out, lse = attention(
        q, k, v, slices, scale=scale, softcap=softcap, sink=sink, backend="reference"
    )
    mask = dense_mask(slices, 13, 24)
    expected = loop(q, k, v, mask, 8**-0.5 if scale is None else scale, softcap, sink)
    torch.testing.assert_close(out, expected[0])
    torch.testing.assert_close(lse, expected[1])


@settings(max_examples=100)
@given(
    st.one_of(masks(), masks(key_block=8)),
    st.integers(0, 99),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from([(4, 4), (4, 2), (3, 1)]),
    st.sampled_from([None, 0.5]),
    st.sampled_from([None, (), (3,)]),
    st.sampled_from([("sdpa", 0.0), ("cpu", 0.0), ("cpu", 1.5)]),
)
def test_backends_equal_reference(
    slices: AttnSlices,
    seed: int,
    dtype: torch.dtype,
    heads: tuple[int, int],
    scale: float | None,
    sinks: Any,
    backend: tuple[Backend, float],
) -> None:
    tensors = inputs(seed, 13, 24, *heads, dtype=dtype)
    compare(slices, tensors, seed, backend[0], scale=scale, softcap=backend[1], sinks=sinks)


def compare(
    slices: AttnSlices,
    tensors: tuple[Tensor, ...],
    seed: int,
    backend: Backend,
    *,
    scale: float | None = None,
    softcap: float = 0.0,
    sinks: Any = None,
) -> None:
    """A backend against the reference: output, log-sum-exp, and gradients through both."""
    dtype, heads = tensors[0].dtype, tensors[0].shape[1]
    generator = torch.Generator().manual_seed(seed)
    given: tuple[Tensor, ...] = tensors
    if sinks is not None:
        given = (*tensors, torch.randn(*sinks, heads, generator=generator).requires_grad_())
    rtol, atol = (1e-11, 1e-11) if dtype == torch.float64 else (2e-5, 5e-6)

    def call(name: Backend) -> tuple[Tensor, Tensor]:
        sink = given[3] if sinks is not None else None
        return attention(*given[:3], slices, scale=scale, softcap=softcap, sink=sink, backend=name)

    (out, lse), (expected, expected_lse) = call(backend), call("reference")
    assert out.dtype == lse.dtype == dtype
    assert lse.shape == (out.shape[0], heads)
    torch.testing.assert_close(out, expected, rtol=rtol, atol=atol)
    torch.testing.assert_close(lse, expected_lse, rtol=rtol, atol=atol)
    towards = torch.randn(out.shape, generator=generator).to(dtype)
    lse_towards = torch.randn(lse.shape, generator=generator).to(dtype)
    seen = expected_lse.detach() > -math.inf
    if not seen.any():
        assert (out == 0).all()
        return
    for through_lse in (False, True):
        pairs = []
        for o, s in ((out, lse), (expected, expected_lse)):
            loss = (o * towards).sum() + through_lse * (s * lse_towards)[seen].sum()
            pairs.append(torch.autograd.grad(loss, given, retain_graph=True))
        for name, mine, theirs in zip(("q", "k", "v", "sink"), *pairs, strict=False):
            assert mine.dtype == theirs.dtype
            wide = {"rtol": 2e-5, "atol": 5e-6} if name == "sink" else {"rtol": rtol, "atol": atol}
            torch.testing.assert_close(
                mine, theirs, **wide, msg=lambda text, n=name: f"d{n}: {text}"
            )


@pytest.mark.parametrize("backend", ["cpu", "sdpa"])
@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize("width", [16, 24])
def test_backends_beyond_one_block(backend: Backend, heads: tuple[int, int], width: int) -> None:
    # blocks have 256 rows and 512 keys; torch's kernel works on 32 to 256 queries and 512 keys
    slices = AttnSlices.from_list(
        [(0, 530, 0, 1100, 1), (530, 600, 3, 700, 3), (540, 801, 701, 1100, 2),
         (600, 610, 0, 701, 0), *((610 + i, 611 + i, 9 * i, 9 * i + 7, 0) for i in range(70))]
    )  # fmt: skip
    tensors = inputs(3, 810, 1101, *heads, width=width, dtype=torch.float64)
    compare(slices, tensors, 5, backend, sinks=(2,))


@pytest.mark.parametrize("backend", ["reference", "cpu", "sdpa"])
def test_rows_without_keys(backend: Backend) -> None:
    # rows 0 and 1 are in no slice, rows 2 and 3 see nothing of theirs (causal, 3 rows on 1 key)
    slices = AttnSlices.from_list([(2, 5, 0, 1, 1)])
    tensors = inputs(0, 6, 3, dtype=torch.float32)
    out, lse = attention(*tensors, slices, backend=backend)
    dead = torch.tensor([True, True, True, True, False, True])
    assert (out[dead] == 0).all() and (lse[dead] == -math.inf).all()
    assert (out[~dead] != 0).all() and lse[~dead].isfinite().all()
    for name, gradient in zip("qkv", torch.autograd.grad(out.sum(), tensors), strict=True):
        assert gradient.isfinite().all(), name
        assert (gradient[dead if name == "q" else slice(1, None)] == 0).all(), name


@pytest.mark.parametrize("backend", ["reference", "cpu", "sdpa"])
def test_an_empty_mask_gives_zeros(backend: Backend) -> None:
    q, k, v = (x.detach() for x in inputs(0, 4, 3, dtype=torch.float32))
    out, lse = attention(q, k, v, AttnSlices.from_list([]), backend=backend)
    assert (out == 0).all() and (lse == -math.inf).all()
    out, lse = attention(q[:0], k, v, AttnSlices.from_list([]), backend=backend)
    assert out.shape == (0, 4, 8) and lse.shape == (0, 4)


@settings(max_examples=20)
@given(
    masks(),
    st.integers(0, 99),
    st.sampled_from([torch.float16, torch.bfloat16]),
    st.sampled_from(ON_CPU),
)
def test_half_precision_rounds_once(
    slices: AttnSlices, seed: int, dtype: torch.dtype, backend: Backend
) -> None:
    q, k, v = (x.detach() for x in inputs(seed, 13, 24, dtype=dtype))
    out, lse = attention(q, k, v, slices, backend=backend)
    wide, wide_lse = attention(q.float(), k.float(), v.float(), slices, backend=backend)
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert torch.equal(out, wide.to(dtype))
    assert torch.equal(lse, wide_lse)


def test_half_precision_carries_gradients() -> None:
    tensors = inputs(1, 5, 7, dtype=torch.bfloat16)
    slices = AttnSlices.from_list([(0, 5, 0, 7, 1)])
    out, _ = attention(*tensors, slices)
    wide = [x.detach().float().requires_grad_() for x in tensors]
    expected, _ = attention(*wide, slices)
    for mine, theirs in zip(
        torch.autograd.grad(out.float().sum(), tensors),
        torch.autograd.grad(expected.sum(), wide),
        strict=True,
    ):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine.float(), theirs, rtol=2e-2, atol=2e-2)


def test_a_sink_of_rows_without_keys() -> None:
    tensors = inputs(2, 3, 4)
    sink = torch.tensor([[0.3, -1.0, 0.0, 2.0], [1.0, 0.5, -0.5, 0.0]]).double().requires_grad_()
    slices = AttnSlices.from_list([(1, 2, 0, 4, 0)])
    out, lse = attention(*tensors, slices, sink=sink)
    assert (out[0] == 0).all() and (out[2] == 0).all()
    torch.testing.assert_close(lse[0], sink.logsumexp(0))
    (gradient,) = torch.autograd.grad(lse[0].sum(), sink, retain_graph=True)
    torch.testing.assert_close(gradient, sink.softmax(0))
    # the sink only takes probability away: O' = O exp(lse - lse')
    plain, plain_lse = attention(*tensors, slices)
    torch.testing.assert_close(out[1], plain[1] * (plain_lse[1] - lse[1]).exp()[:, None])


@pytest.mark.parametrize("sinks", [None, (4,), (2, 4)])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_reference_gradients_include_sink_and_lse(sinks: Any, softcap: float) -> None:
    tensors = inputs(4, 5, 6, width=3)
    slices = AttnSlices.from_list([(0, 3, 0, 4, 1), (2, 4, 4, 6, 2)])
    sink = None if sinks is None else torch.randn(sinks, generator=torch.manual_seed(0)).double()

    def call(*x: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = attention(
            *x[:3], slices, softcap=softcap, sink=x[3] if sinks else None, backend="reference"
        )
        return out, lse.masked_fill(lse == -math.inf, 0)

    given = tensors if sink is None else (*tensors, sink.requires_grad_())
    assert torch.autograd.gradcheck(call, given)


def test_softcap_bounds_the_scores() -> None:
    q, k, v = (x.detach() * 30 for x in inputs(5, 4, 6))
    slices = AttnSlices.from_list([(0, 4, 0, 6, 0)])
    _, lse = attention(q, k, v, slices, softcap=2.0)
    assert (lse <= 2.0 + math.log(6)).all() and (lse >= -2.0 + math.log(6)).all()
    wide, _ = attention(q, k, v, slices, softcap=1e9)
    torch.testing.assert_close(wide, attention(q, k, v, slices)[0])


def test_auto_takes_what_accepts_the_input() -> None:
    q, k, v = (x.detach() for x in inputs(6, 4, 6, dtype=torch.float32))
    slices = AttnSlices.from_list([(0, 4, 0, 6, 0)])
    calls: list[tuple[dict[str, Any], Backend]] = [
        ({}, "sdpa"),
        ({"sink": torch.zeros(4)}, "sdpa"),
        ({"softcap": 3.0}, "cpu"),
    ]
    for keywords, backend in calls:
        auto = attention(q, k, v, slices, **keywords)
        forced = attention(q, k, v, slices, backend=backend, **keywords)
        assert torch.equal(auto[0], forced[0]) and torch.equal(auto[1], forced[1])
    with pytest.raises(BackendError, match="'sdpa' takes no softcap"):
        attention(q, k, v, slices, backend="sdpa", softcap=3.0)


def test_the_same_call_gives_the_same_bits() -> None:
    q, k, v = (x.detach() for x in inputs(7, 40, 40, dtype=torch.float32))
    rows = [(0, 16, 0, 40, 1), (16, 40, 8, 40, 0)]
    first = attention(q, k, v, AttnSlices.from_list(rows), deterministic=True)
    again = attention(q, k, v, AttnSlices.from_list(rows), deterministic=True)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])


def test_key_blocks_fix_the_shape_and_not_the_result() -> None:
    q, k, v = (x.detach() for x in inputs(8, 8, 24, dtype=torch.float32))
    rows = [(0, 4, 2, 6, 0), (4, 8, 8, 16, 0)]
    plain = attention(q, k, v, AttnSlices.from_list(rows))
    blocked = attention(q, k, v, AttnSlices.from_list(rows, key_block=8))
    torch.testing.assert_close(plain, blocked)


def test_a_key_block_must_be_there_whole() -> None:
    q, k, v = (x.detach() for x in inputs(8, 4, 12, dtype=torch.float32))
    with pytest.raises(ValueError, match="16"):
        attention(q, k, v, AttnSlices.from_list([(0, 4, 8, 12, 0)], key_block=8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_do_not_matter(dtype: torch.dtype) -> None:
    slices = AttnSlices.from_list([(0, 5, 0, 7, 1)])
    plain = [x.detach() for x in inputs(9, 5, 7, dtype=dtype)]
    turned = [x.permute(2, 1, 0).contiguous().permute(2, 1, 0) for x in plain]
    packed = torch.cat([plain[1], plain[2]], dim=-1)  # keys and values side by side
    for q, k, v in (turned, [plain[0], *packed.split(8, dim=-1)]):
        torch.testing.assert_close(
            attention(q, k, v, slices, backend="sdpa"), attention(*plain, slices, backend="sdpa")
        )


def test_a_mask_serves_inference_and_training() -> None:
    slices = AttnSlices.from_list([(0, 2, 0, 3, 1), (3, 5, 2, 6, 0), (6, 7, 0, 6, 0)])
    tensors = inputs(10, 8, 6, dtype=torch.float32)
    with torch.inference_mode():
        attention(*tensors, slices)
    out, _ = attention(*tensors, slices)
    out.sum().backward()
    assert all(x.grad is not None for x in tensors)


ONE = AttnSlices.from_list([(0, 4, 0, 6, 0)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backend": "flash"}, "backend 'flash' is not one of"),
        ({"q": torch.zeros(4, 4)}, r"q \(4, 4\)"),
        ({"q": torch.zeros(4, 4, 6)}, r"expected \[Tq, H, D\]"),
        ({x: torch.zeros(4, 2, 0) for x in "qkv"}, "with D above 0"),
        ({"v": torch.zeros(5, 2, 8)}, r"v \(5, 2, 8\)"),
        ({"q": torch.zeros(4, 3, 8)}, "3 query heads are not a multiple of 2 key heads"),
        ({"k": torch.zeros(6, 0, 8), "v": torch.zeros(6, 0, 8)}, "0 key heads"),
        ({"k": torch.zeros(6, 2, 8).double()}, "must be one floating dtype"),
        (
            {
                "q": torch.zeros(4, 4, 8, dtype=torch.int64),
                "k": torch.zeros(6, 2, 8, dtype=torch.int64),
                "v": torch.zeros(6, 2, 8, dtype=torch.int64),
            },
            "must be one floating dtype",
        ),
        (
            {"slices": AttnSlices.from_list([(0, 5, 0, 6, 0)])},
            "query 5 and key 6, but there are 4 queries and 6 keys",
        ),
        ({"slices": AttnSlices.from_list([(0, 4, 0, 7, 0)])}, "key 7"),
        ({"sink": torch.zeros(3)}, r"sink \(3,\)"),
        ({"sink": torch.zeros(())}, r"sink \(\)"),
        ({"sink": torch.zeros(4, 1, 4)}, r"sink \(4, 1, 4\)"),
    ],
)
def test_wrong_calls_are_named(change: dict[str, Any], words: str) -> None:
    call: dict[str, Any] = {
        "q": torch.zeros(4, 4, 8),
        "k": torch.zeros(6, 2, 8),
        "v": torch.zeros(6, 2, 8),
        "slices": ONE,
        **change,
    }
    with pytest.raises(ValueError, match=words):
        attention(**call)
