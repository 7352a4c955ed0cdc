"""Plots of a report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from magi_world.errors import missing_package


def require_matplotlib() -> None:
    """Raise `MissingPackage` where matplotlib is not installed, before anything is measured."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_package("matplotlib", "eval", "the calibration plot") from error


def plot_calibration(path: str | Path, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Draw observed against predicted frequency, one point a bin of `metrics.calibration`.

    Both axes are logarithmic, because ends are rare. Bars are the 95 % Wilson intervals, numbers
    the events and the chunks of a bin; a bin without an event shows the bar of its interval only.

    Raises:
        MissingPackage: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # pyplot would hold global state and look for a display

    figure = Figure(figsize=(5, 5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    lowest = 1e-5
    axes.plot([lowest, 1], [lowest, 1], color="0.7", linewidth=1, label="perfect")
    for row in rows:
        x = max(row["predicted"], lowest)
        low, high = max(row["observed_low"], lowest), max(row["observed_high"], lowest)
        axes.plot([x, x], [low, high], color="tab:blue", linewidth=1.5)
        if row["events"]:
            axes.plot(x, row["observed"], "o", color="tab:blue", markersize=5)
        note = f"{row['events']}/{row['n']}"
        axes.annotate(note, (x, high), (0, 3), textcoords="offset points", ha="center", fontsize=7)
    axes.set(
        xscale="log", yscale="log", xlim=(lowest, 1), ylim=(lowest, 1), title=title,
        xlabel="predicted probability of an end", ylabel="observed frequency",
    )  # fmt: skip
    axes.legend(loc="lower right")
    figure.savefig(path)
