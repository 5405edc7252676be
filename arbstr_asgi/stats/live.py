"""What rows say to a question, for the time that roll-ups know nothing of."""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Any

from arbstr_asgi._utils import in_batches
from arbstr_asgi.database.drivers.base import Driver
from arbstr_asgi.stats.aggregates import FEW, Aggregate
from arbstr_asgi.stats.resolved_query import ResolvedQuery
from arbstr_asgi.stats.rollups.cache import Keys, Place
from arbstr_asgi.stats.sql import SqlDialect, SqlParameters
from arbstr_asgi.stats.totals import Totals

TimeSpan = tuple[datetime, datetime]


class LiveRows:
    """Rows of some times, summed up by what was asked, as the database says them; read on one connection."""

    def __init__(
        self, asked: ResolvedQuery, spans: Sequence[TimeSpan], aggregate: Aggregate, sums: list[Sequence[Any]]
    ) -> None:
        self.spans = spans
        self._asked = asked
        self._aggregate = aggregate
        self._sums = sums

    @classmethod
    async def ask(
        cls, driver: Driver, fragments: SqlDialect, raw: Any, asked: ResolvedQuery, spans: Sequence[TimeSpan]
    ) -> "LiveRows":
        """Have the database sum them up."""
        bounds = [(driver.read_timestamp(since), driver.read_timestamp(until)) for since, until in spans]
        few = await _few(driver, fragments, raw, bounds)
        aggregate = Aggregate(fragments, [asked.names], asked.seconds, few=few)
        sums: list[Sequence[Any]] = []
        for since, until in bounds:
            asking = SqlParameters(fragments.dialect)
            conditions = [fragments.between(asking, since, until), *fragments.fits(asking, asked.filters)]
            sums += await driver.fetch(raw, aggregate.sql(asking, conditions), asking.parameters)
        return cls(asked, spans, aggregate, sums)

    async def totals(self) -> dict[Keys, int]:
        """How many rows each group has."""
        found: dict[Keys, int] = {}
        async for some in in_batches(self._sums):
            for row in some:
                cell, total = self._aggregate.cell(row)
                found[cell.keys] = found.get(cell.keys, 0) + total
        return found

    async def everything(self) -> list[Totals]:
        """What all of them come to, in parts."""
        rows = self._aggregate.together(self._sums)
        return [self._aggregate.tally(row) async for some in in_batches(rows) for row in some]

    async def tallies(self, chosen: Collection[Keys] | None) -> dict[Place, list[Totals]]:
        """What they come to, in parts: of the chosen groups, or of all."""
        found: dict[Place, list[Totals]] = {}
        async for some in in_batches(self._sums):
            for row in some:
                cell, _ = self._aggregate.cell(row)
                if chosen is None or cell.keys in chosen:
                    place = cell.keys, self._asked.named(cell.period * self._asked.seconds)
                    found.setdefault(place, []).append(self._aggregate.tally(row))
        return found


async def _few(driver: Driver, fragments: SqlDialect, raw: Any, bounds: Iterable[tuple[Any, Any]]) -> bool:
    """Whether these times have few rows."""
    left = FEW
    for since, until in bounds:
        asking = SqlParameters(fragments.dialect)
        sql = fragments.counting(asking, [fragments.between(asking, since, until)], left + 1)
        left -= (await driver.fetch(raw, sql, asking.parameters))[0][0]
        if left < 0:
            return False
    return True
