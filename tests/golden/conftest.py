"""Options of the suite: another folder of cases, and the backend of attention.

pytest tests/golden --golden-dir DIR
pytest tests/golden --attention-backend reference|cpu|sdpa|triton
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from magi_world.kernels.attention import AttnSlices, attention, default_backend
from tests.golden.cases import DATA, load_cases


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
        help="backend of all attention; triton runs on the CUDA device, the rest on the CPU",
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
def attention_backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Send all attention to the backend that was asked for."""
    backend = request.config.getoption("attention_backend", default="auto")
    if backend == "triton" and "case" in request.fixturenames:
        if not torch.cuda.is_available():
            pytest.skip("triton: the whole suite needs a CUDA device")
        for module in ("layers", "text", "vae"):
            monkeypatch.setattr(f"magi_world.models.{module}.attention", on_gpu)
        monkeypatch.setattr("tests.golden.trace.attention", on_gpu)
        yield backend
        return
    with default_backend(backend):
        yield backend


def on_gpu(
    q: Tensor, k: Tensor, v: Tensor, slices: AttnSlices, **keywords: Any
) -> tuple[Tensor, Tensor]:
    """Our Triton kernels in the middle of a model that runs on the CPU."""
    out, lse = attention(q.cuda(), k.cuda(), v.cuda(), slices, **keywords, backend="triton")
    return out.cpu(), lse.cpu()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The tensors are tiny: one thread is fastest, and its time is steady."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
