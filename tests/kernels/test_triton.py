# mypy: disable-error-code="arg-type,call-arg,misc"
"""The Triton kernels: in the interpreter or on a GPU, and compiled for GPUs that are not there."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from magi_world.kernels.attention import AttnSlices, DeviceSlices, attention, builders
from magi_world.kernels.attention.triton_ops import (
    SMALLEST_SIDE,
    TileConfig,
    attention_triton,
    tile_config,
)
from tests.kernels.test_attention import masks

pytest.importorskip("triton")

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
pytestmark = [pytest.mark.gpu] * ON_GPU
SMALL = TileConfig(16, 16, 4, 1)
# triton's interpreter counts on numpy to give inf and nan quietly
quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton.runtime.interpreter")


def draw(seed: int, *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def results(
    call: Any,
    given: list[Tensor],
    slices: Any,
    seed: int,
    *,
    through_lse: bool = True,
    **keywords: Any,
) -> dict[str, Tensor]:
    """Output, log-sum-exp and all gradients, by default those through the log-sum-exp included."""
    leaves = [x.detach().requires_grad_() for x in given]
    sink = leaves[3] if len(leaves) > 3 else None
    out, lse = call(*leaves[:3], slices, sink=sink, **keywords)
    towards = draw(seed, out.shape, lse.shape)
    seen = lse > -math.inf
    loss = (out.float() * towards[0]).sum()
    if through_lse:
        loss = loss + (lse * towards[1])[seen].sum()
    names = ("q", "k", "v", "sink")
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    found = {"out": out, "lse": lse.masked_fill(~seen, 0.0)}
    assert torch.equal(out[~seen], torch.zeros_like(out[~seen]))
    return found | {
        f"d_{name}": torch.zeros(()) if g is None else g
        for name, g in zip(names, gradients, strict=False)
    }


def reference(*args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    return attention(*args, backend="reference", **keywords)


def check(slices: AttnSlices, given: list[Tensor], **keywords: Any) -> None:
    config = keywords.pop("config", SMALL)
    mine = results(attention_triton, given, slices, 1, scale=0.4, config=config, **keywords)
    theirs = results(reference, given, slices, 1, scale=0.4, **keywords)
    for name, x in mine.items():
        torch.testing.assert_close(
            x, theirs[name], rtol=2e-5, atol=5e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


@quiet
@settings(max_examples=12)
@given(
    masks(queries=37, keys=41),
    st.integers(0, 99),
    st.sampled_from([(1, 1), (2, 1)]),
    st.sampled_from([8, 24]),
    st.sampled_from([0.0, 1.5]),
    st.sampled_from([None, (), (2,)]),
)
def test_triton_equals_reference(
    slices: AttnSlices, seed: int, heads: tuple[int, int], width: int, softcap: float, sinks: Any
) -> None:
    H, G = heads
    shapes = [(37, H, width), (41, G, width), (41, G, width)]
    given = draw(seed, *shapes, *([] if sinks is None else [(*sinks, H)]))
    if not slices.area() and sinks is None:
        assert (attention_triton(*given, slices, scale=0.4, config=SMALL)[0] == 0).all()
        return
    check(slices, given, softcap=softcap)


@quiet
@pytest.mark.parametrize("width", [16, 64, 128])
def test_head_widths(width: int) -> None:
    slices = AttnSlices.from_list([(0, 33, 0, 40, 1), (33, 45, 5, 50, 3), (33, 40, 0, 5, 0)])
    check(slices, draw(3, (45, 2, width), (50, 1, width), (50, 1, width)))


@quiet
@pytest.mark.parametrize(
    "slices",
    [
        builders.block_causal(60, 16),
        builders.sliding_window(60, 20, 9),
        builders.varlen([5, 0, 31, 24], causal=True),
        builders.teacher_forcing(1, 3, 10, 2),
    ],
    ids=["block-causal", "window", "varlen", "teacher"],
)
def test_masks_in_use(slices: AttnSlices) -> None:
    check(slices, draw(4, (60, 2, 16), (60, 2, 16), (60, 2, 16)), config=TileConfig(32, 16, 4, 1))


@quiet
def test_the_tile_sizes_that_are_chosen() -> None:
    given = draw(5, (70, 1, 16), (70, 1, 16), (70, 1, 16))
    check(builders.causal(70), given, config=None)


def check_half(
    tokens: int, chunk: int, width: int, dtype: torch.dtype, softcap: float, sink: bool, config: Any
) -> None:
    """Twice the error of plain torch in the same precision is allowed, block-causal."""
    slices = builders.block_causal(tokens, chunk)
    exact = draw(6, (tokens, 2, width), (tokens, 1, width), (tokens, 1, width))
    given = [x.to(dtype) for x in exact] + (draw(12, (3, 2)) if sink else [])
    wide = [x.double() for x in given]
    rows = torch.arange(tokens, device=DEVICE) // chunk
    dense = rows[:, None] >= rows

    def low(
        q: Tensor, k: Tensor, v: Tensor, slices: Any, *, sink: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attention in plain operations of the low precision."""
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * 0.4
        if softcap:
            scores = softcap * torch.tanh(scores / softcap)
        scores = scores.masked_fill(~dense, -math.inf)
        if sink is not None:
            beside = sink.T[:, None].expand(-1, tokens, -1).to(dtype)
            scores = torch.cat([scores, beside], dim=-1)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1)[:, :, :tokens], v)
        return out, scores.float().logsumexp(-1).T

    keywords: dict[str, Any] = {"scale": 0.4, "softcap": softcap}
    mine = results(attention_triton, given, slices, 2, config=config, **keywords)
    plain = results(low, given, slices, 2)
    true = results(reference, wide, slices, 2, **keywords)
    for name, x in mine.items():
        error = (x.double() - true[name]).abs().max()
        allowed = 2 * (plain[name].double() - true[name]).abs().max()
        assert error <= allowed + 1e-6, (name, float(error), float(allowed))


@quiet
@pytest.mark.parametrize("dtype", [torch.float16] + [torch.bfloat16] * ON_GPU)
@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("sink", [False, True])
def test_half_precision_errs_no_more_than_torch_does(
    dtype: torch.dtype, softcap: float, sink: bool
) -> None:
    check_half(64, 20, 32, dtype, softcap, sink, SMALL)


@pytest.mark.gpu
@pytest.mark.parametrize("width", [8, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("softcap", [0.0, 1.5])
@pytest.mark.parametrize("sink", [False, True])
def test_the_chosen_tiles_in_half_precision(
    width: int, dtype: torch.dtype, softcap: float, sink: bool
) -> None:
    """Natively, with a softcap and a sink, for which some tiles are smaller."""
    if not ON_GPU:
        pytest.skip("needs a CUDA device")
    check_half(300, 60, width, dtype, softcap, sink, None)


@quiet
def test_one_compiled_kernel_serves_every_mask() -> None:
    given = draw(7, (32, 1, 16), (48, 1, 16), (48, 1, 16))
    refilled = DeviceSlices(num_queries=32, num_keys=48, max_slices=8, max_tiles=32, device=DEVICE)
    for mask in (builders.full(32, 48), builders.causal(20, 30), AttnSlices.from_list([])):
        refilled.fill(mask)
        mine = attention_triton(*given, refilled, scale=0.4, config=SMALL)
        theirs = reference(*given, mask, scale=0.4)
        torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=1e-5)


@quiet
def test_the_public_function_takes_triton() -> None:
    given = draw(8, (20, 2, 8), (20, 2, 8), (20, 2, 8))
    mine = attention(*given, builders.causal(20), backend="triton")
    theirs = attention(*given, builders.causal(20), backend="reference")
    torch.testing.assert_close(mine, theirs, rtol=2e-5, atol=1e-5)
    none = attention(given[0][:0], *given[1:], AttnSlices.from_list([]), backend="triton")
    assert none[0].shape == (0, 2, 8) and none[1].shape == (0, 2)


@quiet
def test_poisoned_buffers_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.empty

    def poisoned(*args: Any, **keywords: Any) -> Tensor:
        made = real(*args, **keywords)
        return made.fill_(math.nan) if made.is_floating_point() else made

    given = draw(9, (21, 2, 8), (30, 1, 8), (30, 1, 8))
    slices = AttnSlices.from_list([(3, 12, 2, 9, 1), (15, 18, 20, 30, 2)])
    monkeypatch.setattr(torch, "empty", poisoned)
    mine = results(attention_triton, given, slices, 1, scale=0.4, config=SMALL)
    monkeypatch.undo()
    theirs = results(reference, given, slices, 1, scale=0.4)
    for name, x in mine.items():
        torch.testing.assert_close(x, theirs[name], rtol=2e-5, atol=1e-5)


# head width, dtype, 1 for a softcap
CASES = ["64,bfloat16,0", "64,bfloat16,1", "24,float32,0"]
DTYPES = ("bfloat16", "float16", "float32")
ALL_OF_A_WIDTH = {
    width: [f"{width},{dtype},{capped}" for dtype in DTYPES for capped in (0, 1)]
    for width in (8, 24, 64, 128, 256)
}


@pytest.mark.parametrize(
    ("target", "cases"),
    [
        # sm_89 has the code of sm_80 and less shared memory
        *(pytest.param(target, CASES, id=str(target)) for target in (80, 90, 100, 120)),
        *(
            pytest.param(target, cases, id=f"{target}-{width}", marks=pytest.mark.slow)
            for target in (80, 89, 90, 100, 120)
            for width, cases in ALL_OF_A_WIDTH.items()
        ),
    ],
)
def test_kernels_compile_without_spills(target: int, cases: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    environment.pop("TRITON_INTERPRET", None)
    program = Path(__file__).with_name("compile_attention.py")
    done = subprocess.run(
        [sys.executable, program, str(target), *cases],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["kernel"] for row in rows] == ["forward", "dq", "dkv"] * len(cases)
    for row in rows:
        assert row["spilled"] == 0 and row["shared"] <= row["limit"], row
        # float32 means float32: no unit multiplies that in full
        assert (row["matrix"] > 0) == (row["dtype"] != "float32"), row
        # a tile that lost the card's own instructions would be several times slower
        assert row["newest"] > 0 or row["dtype"] == "float32" or row["width"] not in (64, 128), row


@pytest.mark.parametrize("kernel", ["forward", "dq", "dkv"])
@pytest.mark.parametrize("capability", [0, 80, 89, 90, 100, 120])
def test_tile_sizes_are_powers_of_two(kernel: str, capability: int) -> None:
    for width in (8, 24, 64, 128, 256):
        for dtype in (torch.float32, torch.float16):
            configs = [
                tile_config(kernel, width, dtype, capability, capped=capped)
                for capped in (False, True)
            ]
            for size in (side for c in configs for side in (c.rows, c.keys)):
                assert size >= SMALLEST_SIDE and size & (size - 1) == 0
