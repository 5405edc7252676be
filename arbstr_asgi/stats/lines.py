"""Rows as lines of a file: CSV for spreadsheets, JSON Lines for programs. Amounts are exact."""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from arbstr_asgi.stats.telling import record

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # with these, spreadsheets run a cell
_SPECIAL = frozenset(',"\r\n')

_json = msgspec.json.Encoder(decimal_format="number")


class RowFormat(NamedTuple):
    """A way to write rows down: what stands above them, and each of them."""

    media_type: str
    suffix: str
    head: bytes
    line: Callable[[Mapping[str, Any]], bytes]


def row_format(kind: str, columns: Iterable[str]) -> RowFormat:
    """`csv` or `jsonl` with these columns, in their order."""
    names = tuple(columns)
    if kind == "csv":
        return RowFormat(
            "text/csv; charset=utf-8", "csv", csv_line(names), lambda row: csv_line([row[n] for n in names])
        )
    return RowFormat("application/x-ndjson", "jsonl", b"", lambda row: _json.encode(record(row)) + b"\n")


def csv_line(values: Iterable[Any]) -> bytes:
    """One record after RFC 4180; unknown is empty, and text that a spreadsheet would run has a `'` in front."""
    return (",".join(map(_cell, values)) + "\r\n").encode("utf-8", "replace")


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "true" if value else "false"
        case Decimal():
            return f"{value:f}"
        case datetime():
            return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case str():
            safe = f"'{value}" if value.startswith(_FORMULA) else value
            return '"' + safe.replace('"', '""') + '"' if not _SPECIAL.isdisjoint(safe) else safe
    return str(value)
