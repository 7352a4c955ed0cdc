"""`pytest tests/golden --golden-dir DIR` runs the suite on another folder of the golden format."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.golden.cases import DATA, load_cases


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names the folder."""
    parser.addoption(
        "--golden-dir",
        default=None,
        metavar="DIR",
        help="folder of golden cases (index.json) to run instead of tests/golden/data",
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
def one_thread() -> Iterator[None]:
    """The tensors are tiny: one thread is fastest, and its time is steady."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
