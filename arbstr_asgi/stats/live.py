"""Aggregates ledger rows, for the time ranges that roll-ups do not cover."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from arbstr_asgi._utils import in_batches
from arbstr_asgi.database.drivers.base import Driver
from arbstr_asgi.stats.aggregates import IN_MEMORY_ROWS, Aggregate
from arbstr_asgi.stats.resolved_query import ResolvedQuery
from arbstr_asgi.stats.rollups.cache import GroupKey, Keys
from arbstr_asgi.stats.sql import SqlDialect, SqlParameters
from arbstr_asgi.stats.totals import Totals

TimeSpan = tuple[datetime, datetime]


class LiveRows:
    """Aggregated rows of some time ranges, as read from the database, grouped as the query asks."""

    def __init__(
        self, resolved: ResolvedQuery, spans: Sequence[TimeSpan], aggregate: Aggregate, rows: list[Sequence[Any]]
    ) -> None:
        self.spans = spans
        self._resolved = resolved
        self._aggregate = aggregate
        self._rows = rows

    @classmethod
    async def query(
        cls, driver: Driver, sql_dialect: SqlDialect, raw: Any, resolved: ResolvedQuery, spans: Sequence[TimeSpan]
    ) -> "LiveRows":
        """Run the aggregation."""
        bounds = [(driver.read_timestamp(since), driver.read_timestamp(until)) for since, until in spans]
        in_memory = await _fits_in_memory(driver, sql_dialect, raw, bounds)
        aggregate = Aggregate(sql_dialect, [resolved.names], resolved.seconds, in_memory=in_memory)
        rows: list[Sequence[Any]] = []
        for since, until in bounds:
            params = SqlParameters(sql_dialect.dialect)
            conditions = [
                sql_dialect.between(params, since, until),
                *sql_dialect.filter_conditions(params, resolved.filters),
            ]
            rows += await driver.fetch(raw, aggregate.sql(params, conditions), params.values)
        return cls(resolved, spans, aggregate, rows)

    async def row_counts(self) -> dict[Keys, int]:
        """The number of rows of each group."""
        result: dict[Keys, int] = {}
        async for batch in in_batches(self._rows):
            for row in batch:
                cell, total = self._aggregate.read_cell(row)
                result[cell.keys] = result.get(cell.keys, 0) + total
        return result

    async def whole(self) -> list[Totals]:
        """The totals of all groups together, as a list to add up."""
        rows = self._aggregate.merge_rows(self._rows)
        return [self._aggregate.read_totals(row) async for batch in in_batches(rows) for row in batch]

    async def totals(self, selected: Collection[Keys] | None) -> dict[GroupKey, list[Totals]]:
        """The totals of the selected groups, or of all (None), as lists to add up."""
        result: dict[GroupKey, list[Totals]] = {}
        async for batch in in_batches(self._rows):
            for row in batch:
                cell, _ = self._aggregate.read_cell(row)
                if selected is None or cell.keys in selected:
                    place = cell.keys, self._resolved.time_key(cell.period * self._resolved.seconds)
                    result.setdefault(place, []).append(self._aggregate.read_totals(row))
        return result


async def _fits_in_memory(driver: Driver, sql_dialect: SqlDialect, raw: Any, bounds: Iterable[tuple[Any, Any]]) -> bool:
    """Whether these time ranges have at most IN_MEMORY_ROWS rows."""
    remaining = IN_MEMORY_ROWS
    for since, until in bounds:
        params = SqlParameters(sql_dialect.dialect)
        sql = sql_dialect.count_up_to(params, [sql_dialect.between(params, since, until)], remaining + 1)
        remaining -= (await driver.fetch(raw, sql, params.values))[0][0]
        if remaining < 0:
            return False
    return True
