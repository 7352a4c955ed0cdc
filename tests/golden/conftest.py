"""Options of the suite: another folder of cases, and the backend of attention.

pytest tests/golden --golden-dir DIR
pytest tests/golden --attention-backend reference|cpu|sdpa|triton
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_world.kernels.attention import AttnSlices, attention, default_backend
from tests.golden.cases import DATA, load_cases

INTERPRETED = 256
"""most tokens of a call in Triton's interpreter"""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the folder."""
    parser.addoption(
        "--golden-dir",
        default=None,
        metavar="DIR",
        help="folder of golden cases (index.json) to run instead of tests/golden/data",
    )
    parser.addoption(
        "--attention-backend",
        default="auto",
        choices=("auto", "reference", "cpu", "sdpa", "triton"),
        help="backend of all attention; triton runs on the CUDA device, or short float32 calls "
        "in its interpreter",
    )


def golden_dir(config: pytest.Config) -> Path:
    """Return the folder whose cases are run."""
    # pytest started at the root without a path finds this file only while collecting: then the
    # option does not exist, and nobody can have given it
    chosen = config.getoption("golden_dir", default=None)
    return config.invocation_params.dir / chosen if chosen else DATA


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a folder that is none, before anything is collected."""
    folder = golden_dir(config)
    if not (folder / "index.json").is_file():
        raise pytest.UsageError(f"--golden-dir: {folder} holds no index.json")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give every test that asks for `case` one run per case of the folder, named after it."""
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", load_cases(golden_dir(metafunc.config)), ids=str)


@pytest.fixture(autouse=True)
def attention_backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Send all attention to the backend that was asked for."""
    backend = request.config.getoption("attention_backend", default="auto")
    if backend == "triton" and "case" in request.fixturenames:
        request.getfixturevalue("our_triton_kernels")
        yield backend
        return
    with default_backend(backend):
        yield backend


@pytest.fixture
def our_triton_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our Triton kernels in the middle of models that run on the CPU."""
    pytest.importorskip("triton")
    for name, module in list(sys.modules.items()):
        if name.startswith(("magi_world.models", "tests.golden.trace")):
            if getattr(module, "attention", None) is attention:
                monkeypatch.setattr(module, "attention", on_triton)


def on_triton(
    q: Tensor, k: Tensor, v: Tensor, slices: AttnSlices, **keywords: Any
) -> tuple[Tensor, Tensor]:
    """Attention by the CUDA device, or where there is none by the interpreter.

    The interpreter gets no bfloat16, in which it is wrong, and no long calls, which take minutes.
    """
    if torch.cuda.is_available():
        out, lse = attention(q.cuda(), k.cuda(), v.cuda(), slices, **keywords, backend="triton")
        return out.cpu(), lse.cpu()
    suits = q.dtype != torch.bfloat16 and max(len(q), len(k)) <= INTERPRETED
    return attention(q, k, v, slices, **keywords, backend="triton" if suits else "auto")
