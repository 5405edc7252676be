"""Rows as text for people."""

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from typing import Any

from arbstr_asgi.terminal.shown import escape_terminal


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], right: Collection[str] = ()) -> str:
    """Rows as aligned text; the columns in `right` end where their names do."""
    cells = [list(columns), *([_cell_text(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(_aligned(row, widths, [name in right for name in columns])).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _aligned(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    return [
        cell.rjust(width) if at_right else cell.ljust(width)
        for cell, width, at_right in zip(row, widths, right, strict=True)
    ]


def _cell_text(value: object) -> str:
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    return "-" if value is None else escape_terminal(value)
