"""Where episodes end: of those that have come so far, how many come no further.

A mean does not say where an agent fails. In a game that pays for time survived this is its hazard
by age: an agent may begin like the best and be lost once more happens at a time than it can follow.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from magi_world.agents.evaluation import Row
from magi_world.agents.results_table import by_place
from magi_world.errors import AgentError

Line = dict[str, Any]

FEWEST = 10
"""episodes that have come so far, below which a share says nothing and is left out"""


def make_bands(
    rows: Sequence[Row], width: float, *, seeds: str = "final", most: int = 8
) -> list[Line]:
    """Count, for each agent and place, who has reached each band of returns and who ends in it.

    A band holds returns from its `edges` up to, but not including, `width` more; the first begins
    at 0, or below the lowest return. Rows on those `seeds` count; the trainings of one line of the
    table count together. A line holds `label`, `policy`, `where`, `width`, and by band `edges`,
    `reached`, `ended` and `share` (None below `FEWEST`).

    Raises:
        AgentError: a width that is not above 0.
    """
    if not width > 0:
        raise AgentError(f"bands of a width of {width:g}: a number above 0 is needed")
    scores = by_place(rows, seeds)
    lowest = min((min(returns) for *_, returns in scores), default=0.0)
    first = min(0, int(np.floor(lowest / width)))
    lines = []
    for label, policy, where, returns in scores:
        band = np.floor(np.asarray(returns, np.float64) / width).astype(np.int64)
        reached = [int((band >= k).sum()) for k in range(first, first + most)]
        ended = [int((band == k).sum()) for k in range(first, first + most)]
        shares = [
            end / start if start >= FEWEST else None
            for end, start in zip(ended, reached, strict=True)
        ]
        lines.append(
            {"label": label, "policy": policy, "where": where, "width": width,
             "edges": [k * width for k in range(first, first + most)],
             "reached": reached, "ended": ended, "share": shares}
        )  # fmt: skip
    return lines


def format_bands(lines: Sequence[Line], seeds: str = "final") -> Table:
    """The lines, made of rows on those seeds, as one table for people."""
    table = Table(
        box=box.SIMPLE,
        title="Of the episodes that reach a band of returns, those that end in it",
        caption=f"on {seeds} seeds; empty where fewer than {FEWEST} episodes come so far",
    )
    for name in ("agent", "policy", "where"):
        table.add_column(name, overflow="fold")
    width = lines[0]["width"]
    bands = max(sum(share is not None for share in line["share"]) for line in lines)
    for edge in lines[0]["edges"][:bands]:
        table.add_column(f"{edge:g} to {edge + width:g}", justify="right")
    for line in lines:
        cells = ["" if share is None else f"{share:.0%}" for share in line["share"][:bands]]
        # Text, because brackets in a plain string are markup
        table.add_row(*map(Text, [line["label"], line["policy"], line["where"], *cells]))
    return table
