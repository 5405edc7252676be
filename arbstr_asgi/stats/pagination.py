"""Keyset pagination of rows: sorting, cursors, counting."""

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
from arbstr_asgi.stats.timezones import truncate_bound

MAX_EXACT_COUNT = 50_000  # rows
_IDS_PER_STATEMENT = 500
_LOOKUP_COST = 4  # relative to one step of an index scan


class Segment(NamedTuple):
    """A part of the sorted rows: the condition that selects it, and its ORDER BY."""

    condition: str
    order: str


class KeysetOrder:
    """The sort order of one query.

    `use_sort_index`: scan the index of the sorted column rather than that of the timestamp; SQLite can not choose by
    itself.
    """

    def __init__(self, driver: Driver, sql_dialect: SqlDialect, query: RequestsQuery, *, use_sort_index: bool) -> None:
        self._driver = driver
        self._sql_dialect = sql_dialect
        self._query = query
        self._use_sort_index = use_sort_index

    def segments(self) -> Iterator[tuple[SqlParameters, Segment]]:
        """The segments in order, each with the parameters of its condition.

        Rows with NULL in the sorted column are a segment of their own, the last: the others are found by a partial
        index.
        """
        columns, after = self._columns(), self._query.after
        known, unknown = f"{self._name} IS NOT NULL", f"{self._name} IS NULL"
        params = SqlParameters(self._driver.dialect)
        if after is not None and after.value is None:
            yield params, Segment(f"{unknown} AND id {self._sign} {params.add(after.id)}", self._order([]))
            return
        condition = known if after is None else f"{known} AND {self._after_cursor(params, columns, after)}"
        yield params, Segment(condition, self._order(columns))
        if self._query.sort != "timestamp":
            yield SqlParameters(self._driver.dialect), Segment(unknown, self._order([]))

    def conditions(self, params: SqlParameters) -> list[str]:
        """The conditions of the time range and the filters."""
        encode_timestamp, query = self._driver.read_timestamp, self._query
        result = [
            self._sql_dialect.between(params, encode_timestamp(query.since), encode_timestamp(query.until)),
            *self._sql_dialect.filter_conditions(params, query.filters),
        ]
        if self._driver.dialect != "sqlite" or not self._use_sort_index:
            return result
        indexed = [self._sql_dialect.name(name) for name in ("timestamp", "end_user", "end_reason")]
        return [_without_index(condition, indexed) for condition in result]

    @property
    def _name(self) -> str:
        return self._sql_dialect.name(self._query.sort)

    @property
    def _sign(self) -> str:
        return "<" if self._query.descending else ">"

    def _columns(self) -> list[str]:
        columns = self._sql_dialect.sort_keys(self._query.sort) if self._query.sort == "cost_sats" else [self._name]
        if self._driver.dialect == "sqlite" and self._query.sort != "timestamp" and not self._use_sort_index:
            return [f"+{column}" for column in columns]
        return columns

    def _order(self, columns: list[str]) -> str:
        direction = "DESC" if self._query.descending else "ASC"
        return ", ".join(f"{column} {direction}" for column in [*columns, "id"])

    def _after_cursor(self, params: SqlParameters, columns: list[str], after: Cursor) -> str:
        """The condition for rows after the cursor, written so that each database uses the index of the first column."""
        sign, parts = self._sign, self._parts(after.value)
        first = f"{columns[0]} {sign}= {params.add(parts[0])}"
        nested = [
            f"({column} {sign} {params.add(part)} OR ({column} = {params.add(part)} AND "
            for column, part in zip(columns, parts, strict=True)
        ]
        return f"{first} AND {''.join(nested)}id {sign} {params.add(after.id)}{'))' * len(nested)}"

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


def _without_index(condition: str, names: list[str]) -> str:
    """The condition with these columns as expressions, which keeps SQLite from using their indexes."""
    for name in names:
        condition = condition.replace(name, f"+{name}")
    return condition


class Pagination:
    """Reads pages, one query at a time."""

    def __init__(self, driver: Driver, sql_dialect: SqlDialect, cache: RollupCache) -> None:
        self._driver = driver
        self._sql_dialect = sql_dialect
        self._stats_reader = StatsReader(driver, sql_dialect, cache)
        columns = ", ".join(sql_dialect.name(column.name) for column in COLUMNS)
        self._rows = f"SELECT id, {columns} FROM {sql_dialect.requests} WHERE id IN "  # noqa: S608 - no values

    async def page(self, raw: Any, query: RequestsQuery, *, with_total: bool = True) -> Page:
        """One page of rows; `total` only with `with_total`."""
        query = replace(query, since=truncate_bound(query.since), until=truncate_bound(query.until))
        if query.since >= query.until:
            return Page([], 0, None)
        async with self._driver.reading(raw):
            total = await self._total(raw, query.filters, query) if with_total else None
            ids = await self._select_ids(raw, query, await self._use_sort_index(raw, query, total))
            rows = await self._read_rows(raw, ids[: query.limit])
        has_more = len(ids) > query.limit and rows
        return Page(rows, total, Cursor(rows[-1][query.sort], rows[-1]["id"]) if has_more else None)

    async def _select_ids(self, raw: Any, query: RequestsQuery, use_sort_index: bool) -> list[int]:
        """The ids of the page, and one more where there is a next page."""
        result: list[int] = []
        keyset_order = KeysetOrder(self._driver, self._sql_dialect, query, use_sort_index=use_sort_index)
        offset = query.offset if query.after is None else 0
        for params, segment in keyset_order.segments():
            conditions = [segment.condition, *keyset_order.conditions(params)]
            rows = f"FROM {self._sql_dialect.requests} WHERE {' AND '.join(conditions)}"
            count_values = [*params.values]
            limit = f"LIMIT {params.add(query.limit + 1 - len(result))} OFFSET {params.add(offset)}"
            sql = f"SELECT id {rows} ORDER BY {segment.order} {limit}"
            ids_found = [int(row[0]) for row in await self._driver.fetch(raw, sql, params.values)]
            result += ids_found
            if len(result) > query.limit:
                break
            if offset and not ids_found:
                ((skipped,),) = await self._driver.fetch(raw, f"SELECT count(*) {rows}", count_values)
                offset -= skipped
            else:
                offset = 0
        return result

    async def _read_rows(self, raw: Any, ids: Sequence[int]) -> list[dict[str, Any]]:
        result: dict[int, dict[str, Any]] = {}
        for start in range(0, len(ids), _IDS_PER_STATEMENT):
            params = SqlParameters(self._driver.dialect)
            sql = f"{self._rows}({params.add_all(ids[start : start + _IDS_PER_STATEMENT])})"
            for row_id, *row in await self._driver.fetch(raw, sql, params.values):
                result[row_id] = {"id": row_id, **values.read(row)}
        return [result[row_id] for row_id in ids]

    async def _use_sort_index(self, raw: Any, query: RequestsQuery, total: int | None) -> bool:
        """Estimate whether scanning the sort index until the page is full is cheaper than sorting all matches."""
        if query.sort == "timestamp" or self._driver.dialect != "sqlite":
            return False
        matching = total if total is not None else await self._total(raw, _rollup_filters(query.filters), query)
        if matching is None:
            return True
        all_rows = await self._stats_reader.rolled_up_count(raw)
        needed = query.limit + (query.offset if query.after is None else 0)
        steps = needed * max(all_rows, matching) / max(matching, 1)
        return steps * (_LOOKUP_COST if query.filters.given else 1) < matching * _LOOKUP_COST

    async def _total(self, raw: Any, filters: Filters, query: RequestsQuery) -> int | None:
        """The number of matching rows; None where counting would take long."""
        if filters.correlation_id is not None:
            return await self._count(raw, filters, query)
        known = _rollup_filters(filters)
        since = max(query.since, await self._stats_reader.first_kept(raw))  # roll-ups include pruned rows
        if since >= query.until:
            return 0
        resolved = ResolvedQuery.resolve(StatsQuery(since=since, until=query.until, filters=known))
        split = await self._stats_reader.split(raw, resolved)
        result = sum((await self._stats_reader.row_counts(raw, resolved, split)).values())
        for since, until in split.rows:
            part = replace(query, since=since, until=until)
            if await self._count(raw, Filters(), part) is None:
                return None
            result += await self._count(raw, known, part) or 0
        if known == filters:
            return result
        return await self._count(raw, filters, query) if result <= MAX_EXACT_COUNT else None

    async def _count(self, raw: Any, filters: Filters, query: RequestsQuery) -> int | None:
        params = SqlParameters(self._driver.dialect)
        encode_timestamp = self._driver.read_timestamp
        conditions = [
            self._sql_dialect.between(params, encode_timestamp(query.since), encode_timestamp(query.until)),
            *self._sql_dialect.filter_conditions(params, filters),
        ]
        sql = self._sql_dialect.count_up_to(params, conditions, MAX_EXACT_COUNT + 1)
        ((count,),) = await self._driver.fetch(raw, sql, params.values)
        return int(count) if count <= MAX_EXACT_COUNT else None


def _rollup_filters(filters: Filters) -> Filters:
    """The largest part of the filters that roll-ups can answer: all, the end user, or the first two."""
    count_values = {name: value for name, value in filters.given.items() if name in DIMENSIONS}
    if matching_grouping((), Filters(**count_values)) is not None:
        return Filters(**count_values)
    if "end_user" in count_values:
        return Filters(end_user=count_values["end_user"])
    return Filters(**dict(list(count_values.items())[:2]))
