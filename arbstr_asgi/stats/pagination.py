"""Pages of rows: how they are sorted, where the next one begins, and how they are read."""

from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from msgspec.structs import replace

from arbstr_asgi.database import values
from arbstr_asgi.database.columns import COLUMNS
from arbstr_asgi.database.drivers.base import Driver
from arbstr_asgi.stats.planner import DIMENSIONS, matching_grouping
from arbstr_asgi.stats.query import Cursor, Filters, Page, RequestsQuery, StatsQuery
from arbstr_asgi.stats.reader import StatsReader
from arbstr_asgi.stats.resolved_query import ResolvedQuery
from arbstr_asgi.stats.rollups.cache import RollupCache
from arbstr_asgi.stats.sql import SqlDialect, SqlParameters
from arbstr_asgi.stats.timezones import bound

COUNTED = 50_000  # rows at most that are counted one by one
_AT_ONCE = 500  # rows whose numbers are in one statement
_LOOKUP = 4  # times as much work as a step along an index


class Segment(NamedTuple):
    """A part of all rows, in their order: a condition and what to sort by."""

    condition: str
    order: str


class KeysetOrder:
    """Of one query. `walks`: along the index of the sorted column, not of the time; for SQLite, which can't know."""

    def __init__(self, driver: Driver, fragments: SqlDialect, query: RequestsQuery, *, walks: bool) -> None:
        self._driver = driver
        self._fragments = fragments
        self._query = query
        self._use_sort_index = walks

    def segments(self) -> Iterator[tuple[SqlParameters, Segment]]:
        """One after the other they are the rows that are asked for; each with the parameters that it begins with.

        What has no value comes last, so that the other rows are found by an index that has only them.
        """
        columns, after = self._columns(), self._query.after
        known, unknown = f"{self._name} IS NOT NULL", f"{self._name} IS NULL"
        asking = SqlParameters(self._driver.dialect)
        if after is not None and after.value is None:
            yield asking, Segment(f"{unknown} AND id {self._sign} {asking.add(after.id)}", self._order([]))
            return
        behind = known if after is None else f"{known} AND {self._behind(asking, columns, after)}"
        yield asking, Segment(behind, self._order(columns))
        if self._query.sort != "timestamp":
            yield SqlParameters(self._driver.dialect), Segment(unknown, self._order([]))

    def conditions(self, asking: SqlParameters) -> list[str]:
        """For the time and the filters."""
        moment, query = self._driver.read_timestamp, self._query
        found = [
            self._fragments.between(asking, moment(query.since), moment(query.until)),
            *self._fragments.fits(asking, query.filters),
        ]
        if self._driver.dialect != "sqlite" or not self._use_sort_index:
            return found
        indexed = [self._fragments.name(name) for name in ("timestamp", "end_user", "end_reason")]
        return [_aside(condition, indexed) for condition in found]

    @property
    def _name(self) -> str:
        return self._fragments.name(self._query.sort)

    @property
    def _sign(self) -> str:
        return "<" if self._query.descending else ">"

    def _columns(self) -> list[str]:
        columns = self._fragments.exact(self._query.sort) if self._query.sort == "cost_sats" else [self._name]
        if self._driver.dialect == "sqlite" and self._query.sort != "timestamp" and not self._use_sort_index:
            return [f"+{column}" for column in columns]
        return columns

    def _order(self, columns: list[str]) -> str:
        way = "DESC" if self._query.descending else "ASC"
        return ", ".join(f"{column} {way}" for column in [*columns, "id"])

    def _behind(self, asking: SqlParameters, columns: list[str], after: Cursor) -> str:
        """Behind a row; said so that each database finds the place in its index by the first column."""
        sign, parts = self._sign, self._parts(after.value)
        first = f"{columns[0]} {sign}= {asking.add(parts[0])}"
        opened = [
            f"({column} {sign} {asking.add(part)} OR ({column} = {asking.add(part)} AND "
            for column, part in zip(columns, parts, strict=True)
        ]
        return f"{first} AND {''.join(opened)}id {sign} {asking.add(after.id)}{'))' * len(opened)}"

    def _parts(self, value: Any) -> list[Any]:
        if self._query.sort == "timestamp":
            return [self._driver.read_timestamp(values.timestamp(value))]
        if self._query.sort == "latency_ms":
            return [value]
        amount = values.money(value) or Decimal(0)
        if self._driver.dialect != "sqlite":
            return [amount]
        sats = int(amount)
        return [sats, int((amount - sats).scaleb(9))]


def _aside(condition: str, names: list[str]) -> str:
    """The condition with these columns as expressions, which no index of them is used for."""
    for name in names:
        condition = condition.replace(name, f"+{name}")
    return condition


class Pagination:
    """Asks on one connection at a time."""

    def __init__(self, driver: Driver, fragments: SqlDialect, memory: RollupCache) -> None:
        self._driver = driver
        self._fragments = fragments
        self._statistics = StatsReader(driver, fragments, memory)
        columns = ", ".join(fragments.name(column.name) for column in COLUMNS)
        self._rows = f"SELECT id, {columns} FROM {fragments.requests} WHERE id IN "  # noqa: S608 - no values

    async def page(self, raw: Any, query: RequestsQuery, *, counted: bool = True) -> Page:
        """What the query asks for; `total` only if it is to be counted."""
        query = replace(query, since=bound(query.since), until=bound(query.until))
        if query.since >= query.until:
            return Page([], 0, None)
        async with self._driver.reading(raw):
            total = await self._total(raw, query.filters, query) if counted else None
            numbers = await self._numbers(raw, query, await self._use_sort_index(raw, query, total))
            rows = await self._read(raw, numbers[: query.limit])
        more = len(numbers) > query.limit and rows
        return Page(rows, total, Cursor(rows[-1][query.sort], rows[-1]["id"]) if more else None)

    async def uncounted(self, raw: Any, query: RequestsQuery) -> Page:
        """The same without `total`."""
        return await self.page(raw, query, counted=False)

    async def _numbers(self, raw: Any, query: RequestsQuery, walks: bool) -> list[int]:
        """One more than the page has, where there is one."""
        found: list[int] = []
        ordering = KeysetOrder(self._driver, self._fragments, query, walks=walks)
        offset = query.offset if query.after is None else 0
        for asking, stratum in ordering.segments():
            conditions = [stratum.condition, *ordering.conditions(asking)]
            rows = f"FROM {self._fragments.requests} WHERE {' AND '.join(conditions)}"
            given = [*asking.parameters]
            limit = f"LIMIT {asking.add(query.limit + 1 - len(found))} OFFSET {asking.add(offset)}"
            sql = f"SELECT id {rows} ORDER BY {stratum.order} {limit}"
            some = [int(row[0]) for row in await self._driver.fetch(raw, sql, asking.parameters)]
            found += some
            if len(found) > query.limit:
                break
            if offset and not some:
                ((passed,),) = await self._driver.fetch(raw, f"SELECT count(*) {rows}", given)
                offset -= passed
            else:
                offset = 0
        return found

    async def _read(self, raw: Any, numbers: Sequence[int]) -> list[dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        for place in range(0, len(numbers), _AT_ONCE):
            asking = SqlParameters(self._driver.dialect)
            sql = f"{self._rows}({asking.add_all(numbers[place : place + _AT_ONCE])})"
            for number, *row in await self._driver.fetch(raw, sql, asking.parameters):
                found[number] = {"id": number, **values.read(row)}
        return [found[number] for number in numbers]

    async def _use_sort_index(self, raw: Any, query: RequestsQuery, total: int | None) -> bool:
        """Whether it is less work to go along the sorted column until enough rows fit than to sort all that fit."""
        if query.sort == "timestamp" or self._driver.dialect != "sqlite":
            return False
        fitting = total if total is not None else await self._total(raw, _rolled_up(query.filters), query)
        if fitting is None:
            return True
        everything = await self._statistics.rolled_up(raw)
        wanted = query.limit + (query.offset if query.after is None else 0)
        steps = wanted * max(everything, fitting) / max(fitting, 1)
        return steps * (_LOOKUP if query.filters.given else 1) < fitting * _LOOKUP

    async def _total(self, raw: Any, filters: Filters, query: RequestsQuery) -> int | None:
        """How many rows there are; None where counting them would take long."""
        if filters.correlation_id is not None:
            return await self._counted(raw, filters, query)
        known = _rolled_up(filters)
        since = max(query.since, await self._statistics.kept_since(raw))  # roll-ups know of rows that have been pruned
        if since >= query.until:
            return 0
        asked = ResolvedQuery.of(StatsQuery(since=since, until=query.until, filters=known))
        divided = await self._statistics.divided(raw, asked)
        found = sum((await self._statistics.totals(raw, asked, divided)).values())
        for since, until in divided.rows:
            part = replace(query, since=since, until=until)
            if await self._counted(raw, Filters(), part) is None:
                return None
            found += await self._counted(raw, known, part) or 0
        if known == filters:
            return found
        return await self._counted(raw, filters, query) if found <= COUNTED else None

    async def _counted(self, raw: Any, filters: Filters, query: RequestsQuery) -> int | None:
        asking = SqlParameters(self._driver.dialect)
        moment = self._driver.read_timestamp
        conditions = [
            self._fragments.between(asking, moment(query.since), moment(query.until)),
            *self._fragments.fits(asking, filters),
        ]
        sql = self._fragments.counting(asking, conditions, COUNTED + 1)
        ((count,),) = await self._driver.fetch(raw, sql, asking.parameters)
        return int(count) if count <= COUNTED else None


def _rolled_up(filters: Filters) -> Filters:
    """Of these, ones that a roll-up knows: where not all of them, the end user or the first two."""
    given = {name: value for name, value in filters.given.items() if name in DIMENSIONS}
    if matching_grouping((), Filters(**given)) is not None:
        return Filters(**given)
    if "end_user" in given:
        return Filters(end_user=given["end_user"])
    return Filters(**dict(list(given.items())[:2]))
