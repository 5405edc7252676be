"""What a writer leaves beside its rows: which hours have changed, so that their roll-ups are made again."""

import secrets
from collections.abc import Iterable
from datetime import datetime

from arbstr_asgi.database.columns import COLUMNS
from arbstr_asgi.database.values import Record, read_timestamp
from arbstr_asgi.stats.planner import HOUR
from arbstr_asgi.stats.timezones import number_of

_ARRIVAL = [column.name for column in COLUMNS].index("timestamp")

HourMark = tuple[int, int, int]
"""Hour, writer, mark: parameters of `Statements.mark_hour`."""


class DirtyHours:
    """One writer's marks, each different from all before; a name of its own, so that writers don't wait in a row."""

    def __init__(self) -> None:
        self._writer = secrets.randbits(63)
        self._last = 0

    def of(self, moments: Iterable[datetime]) -> list[HourMark]:
        """New marks for the hours of these normalised moments."""
        self._last += 1
        return [(hour, self._writer, self._last) for hour in sorted({number_of(moment, HOUR) for moment in moments})]

    def of_records(self, records: Iterable[Record]) -> list[HourMark]:
        """New marks for the hours of these records."""
        return self.of(read_timestamp(record.row[_ARRIVAL]) for record in records)
