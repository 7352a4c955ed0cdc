"""The progress bar of loading and writing weights, on standard error."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from magi_world.checkpoints.shards import Progress


@contextmanager
def progress_bar(title: str, nbytes: int, *, show: bool | None = None) -> Iterator[Progress | None]:
    """Yield what has to be told the bytes that have arrived, or None without a bar.

    Args:
        title: stands in front of the bar.
        nbytes: bytes that are expected.
        show: None shows the bar where standard error is a terminal.
    """
    if not (sys.stderr.isatty() if show is None else show):
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
        TimeRemainingColumn(),
    )  # fmt: skip
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=nbytes)
        yield lambda arrived: bar.update(task, advance=arrived)
