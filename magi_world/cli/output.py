"""Where words and data go: data to standard output, everything else to standard error."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def say(text: str) -> None:
    """Write one line for people to standard error, at once."""
    print(text, file=sys.stderr, flush=True)


def emit_json(data: Any) -> None:
    """Write plain data as JSON to standard output."""
    print(json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False))


def emit_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write rows as an aligned table to standard output; numbers stand at the right."""
    lines = [list(columns)] + [[cell(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns))]
    numeric = [all(isinstance(row.get(column), (int, float)) for row in rows) for column in columns]
    for line in lines:
        cells = [
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(line, widths, numeric, strict=True)
        ]
        print("  ".join(cells).rstrip())


def emit_markdown(table: "Table") -> None:
    """Write a table of rich to standard output in Markdown, with the alignment of its columns."""
    columns = [list(map(str, (column.header, *column.cells))) for column in table.columns]
    rule = ["---:" if column.justify == "right" else "---" for column in table.columns]
    header, *rows = zip(*columns, strict=True)
    for cells in (header, rule, *rows):
        print("| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |")


def emit_pairs(values: Mapping[str, Any]) -> None:
    """Write one `name  value` line an entry to standard output."""
    width = max(map(len, values), default=0)
    for name, value in values.items():
        print(f"{name.ljust(width)}  {cell(value)}")


def cell(value: Any) -> str:
    """Text of one value; floats get four significant digits, None a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return str(value)
