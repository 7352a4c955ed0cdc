# mypy: disable-error-code="misc"
"""Half precision on the masks in use, by the rule of twice the error of plain torch."""

import math
import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from magi_world.kernels.attention import AttnSlices, Backend, BackendError, attention, builders
from magi_world.kernels.attention.call import current
from magi_world.kernels.attention.choice import choose, describe
from magi_world.kernels.attention.reference import dense_mask
from tests.golden.cases import DATA, load_cases
from tests.golden.drivers import DRIVERS
from tests.kernels.test_choice import packaged
from tests.kernels.test_triton import DEVICE, ON_GPU, draw, reference, results

__all__ = ["packaged"]  # a fixture

HALVES = [torch.float16, torch.bfloat16]
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
    q: Tensor, k: Tensor, v: Tensor, slices: AttnSlices, *, scale: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attention in plain operations of the inputs' precision."""
    seen = dense_mask(slices, len(q), len(k)).to(q.device)
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (torch.einsum("qhd,khd->hqk", q, k) * scale).masked_fill(~seen, -math.inf)
    shares = scores.softmax(-1).masked_fill(~seen, 0.0)
    out = torch.einsum("hqk,khd->qhd", shares, v)
    return out, scores.float().logsumexp(-1).T


def refused(backend: Backend, q: Tensor, slices: AttnSlices) -> str | None:
    """What a backend says beforehand of a call that it does not take."""
    try:
        choose(backend, describe(q, None, 0.0, needs_grad=True, deterministic=False), slices)
    except BackendError as error:
        return str(error)
    return None


def check(backend: Backend, given: list[Tensor], slices: AttnSlices, *, scale: float = 0.4) -> None:
    """A backend by the rule; skipped where it says beforehand that it does not take the call."""
    # flash2 gives no gradient through lse
    through_lse = backend != "flash2"
    if (reason := refused(backend, given[0], slices)) is not None:
        pytest.skip(reason)

    def found(call: Any, x: list[Tensor], **keywords: Any) -> dict[str, Tensor]:
        return results(call, x, slices, 2, through_lse=through_lse, scale=scale, **keywords)

    mine = found(attention, given, backend=backend)
    plain = found(plain_torch, given)
    true = found(reference, [x.double() for x in given])
    for part, x in mine.items():
        assert x.device.type == DEVICE.type
        error = (x.double() - true[part]).abs().max()
        allowed = 2 * (plain[part].double() - true[part]).abs().max()
        assert error <= allowed + 1e-6, (part, float(error), float(allowed))


@pytest.mark.gpu
@pytest.mark.parametrize("width", [24, 64, 128])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_more_than_twice_the_error(
    backend: Backend, name: str, dtype: torch.dtype, width: int
) -> None:
    if not ON_GPU:
        pytest.skip("needs a CUDA device")
    given = [x.to(dtype) for x in draw(6, (300, 2, width), (300, 1, width), (300, 1, width))]
    check(backend, given, MASKS[name])


@pytest.mark.parametrize("width", [8, 24, 128])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["block-causal", "window", "rows-without-keys"])
@pytest.mark.parametrize("backend", ["cpu", "sdpa"])
def test_no_more_than_twice_the_error_on_a_cpu(
    backend: Backend, name: str, dtype: torch.dtype, width: int
) -> None:
    if ON_GPU:
        pytest.skip("the tensors are on the CUDA device")
    given = [x.to(dtype) for x in draw(6, (300, 2, width), (300, 1, width), (300, 1, width))]
    check(backend, given, MASKS[name])


@pytest.mark.skipif(ON_GPU, reason="the stand-in computes on the CPU")
@pytest.mark.parametrize("name", ["full", "varlen"])
def test_the_rule_reaches_flash2(name: str, request: pytest.FixtureRequest) -> None:
    """It gives no gradient through lse: a loss that asked for it would skip every case."""
    request.getfixturevalue("packaged")
    given = [x.half() for x in draw(6, (300, 2, 24), (300, 1, 24), (300, 1, 24))]
    check("flash2", given, MASKS[name])


class Recorded(NamedTuple):
    """An attention call of a golden case."""

    tensors: list[Tensor]
    slices: AttnSlices
    scale: float


@pytest.fixture(scope="module")
def golden() -> dict[str, Recorded]:
    """The first call of every shape in every golden case of the model."""
    found: dict[str, Recorded] = {}
    name = ""

    def recording(
        q: Tensor, k: Tensor, v: Tensor, slices: AttnSlices, **keywords: Any
    ) -> tuple[Tensor, Tensor]:
        scale = keywords.get("scale") or q.shape[2] ** -0.5
        key = f"{name} {len(q)} {len(k)} {q.shape[2]}"
        tensors = [x.detach().float().to(DEVICE) for x in (q, k, v)]
        found.setdefault(key, Recorded(tensors, current(slices), scale))
        return attention(q, k, v, slices, **keywords)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        for case in load_cases(DATA):
            if case.kind not in ("modules", "forward"):
                continue
            name = case.name
            driver = DRIVERS[case.kind]  # it imports the model
            for title, module in list(sys.modules.items()):
                if title.startswith(("magi_world.models", "tests.golden.trace")):
                    if getattr(module, "attention", None) is attention:
                        patch.setattr(module, "attention", recording)
            driver(case)
    assert {x.tensors[0].shape[2] for x in found.values()} >= {16, 24, 128}
    return found


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "backend",
    ["cpu", "sdpa", *(pytest.param(name, marks=pytest.mark.gpu) for name in BACKENDS)],
    ids=["cpu", "sdpa-here", *BACKENDS],
)
def test_no_more_than_twice_the_error_on_golden_inputs(
    backend: Backend, dtype: torch.dtype, golden: dict[str, Recorded]
) -> None:
    """What the models of the golden cases ask for, in the precision of the published ones."""
    taken = 0
    for one in golden.values():
        given = [x.to(dtype) for x in one.tensors]
        if refused(backend, given[0], one.slices) is None:
            check(backend, given, one.slices, scale=one.scale)
            taken += 1
    if not taken:
        pytest.skip(f"{backend} takes none of them here")
