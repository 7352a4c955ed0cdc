"""Names of the backends, and the one that calls take which name none."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

Backend = Literal["auto", "reference", "cpu", "sdpa", "flex", "triton", "flash4", "flash2"]
BACKENDS: tuple[str, ...] = get_args(Backend)[1:]

current: Backend = "auto"
"""what ``backend="auto"`` means; set it by :func:`default_backend`"""


@contextmanager
def default_backend(backend: Backend) -> Iterator[None]:
    """Let every call of attention that names no backend use this one, in all threads.

    For tests and comparisons: a call that the backend does not take raises, it does not fall back.

    Raises:
        ValueError: no backend of this name.
    """
    global current
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {('auto', *BACKENDS)}")
    before, current = current, backend
    try:
        yield
    finally:
        current = before
