"""Copies between host and device that run beside the computation.

On CUDA a lane is a stream of its own, ordered against the current stream by events. Elsewhere a
copy is finished when it returns, and there is nothing to wait for; callers need not know.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def host_empty(nbytes: int, device: torch.device) -> Tensor:
    """Bytes in host memory, pinned when the device copies asynchronously."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


class CopyLane:
    """An ordered queue of copies."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def after_compute(self) -> Iterator[None]:
        """Queue the copies made inside, behind all computation that was issued before."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> torch.cuda.Event | None:
        """A point behind everything queued so far; None where copies are finished at once."""
        return None if self._stream is None else self._stream.record_event()

    def hold_compute(self, mark: torch.cuda.Event | None) -> None:
        """Let the computation that is issued from now on wait for a mark."""
        if mark is not None and self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_event(mark)

    def finish(self) -> None:
        """Wait on the host until every queued copy is done."""
        if self._stream is not None:
            self._stream.synchronize()
