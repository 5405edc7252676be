"""Marks of dirty hours: a writer stores them with its rows, so that the roll-ups of those hours are rebuilt."""

import secrets
from collections.abc import Iterable
from datetime import datetime

from arbstr_asgi.database.columns import COLUMNS
from arbstr_asgi.database.values import Record
from arbstr_asgi.stats.planner import HOUR
from arbstr_asgi.stats.timezones import period_number

_TIMESTAMP = [column.name for column in COLUMNS].index("timestamp")

HourMark = tuple[int, int, int]
"""Hour, writer, mark: parameters of `Statements.mark_hour`."""


class DirtyHours:
    """Makes the marks of one writer, each unique; its random id keeps writers from locking the same row."""

    def __init__(self) -> None:
        self._writer = secrets.randbits(63)
        self._last_mark = 0

    def marks(self, timestamps: Iterable[datetime]) -> list[HourMark]:
        """New marks for the hours of these normalised timestamps."""
        self._last_mark += 1
        known = list(timestamps)
        hours = {period_number(timestamp, HOUR) for timestamp in ((min(known), max(known)) if known else ())}
        if len(hours) > 1:
            hours = {period_number(timestamp, HOUR) for timestamp in known}
        return [(hour, self._writer, self._last_mark) for hour in sorted(hours)]

    def record_marks(self, records: Iterable[Record]) -> list[HourMark]:
        """New marks for the hours of these records."""
        return self.marks([record.row[_TIMESTAMP] for record in records])
