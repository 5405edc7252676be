"""Reads statistics: from roll-ups what they cover, the rest from rows, in one snapshot of the database."""

from datetime import datetime, timedelta
from typing import Any

import msgspec

from arbstr_asgi._utils import in_batches
from arbstr_asgi.database.drivers.base import Driver
from arbstr_asgi.stats.live import LiveRows
from arbstr_asgi.stats.planner import COARSE, DAY, HOUR, RollupState, TimeSplit, clip, only_rows, split_time
from arbstr_asgi.stats.query import ALL_TIME, Group, Key, StatsQuery, Summary
from arbstr_asgi.stats.resolved_query import ResolvedQuery
from arbstr_asgi.stats.rollups.cache import GroupKey, Keys, RollupCache
from arbstr_asgi.stats.rollups.reader import RollupReader
from arbstr_asgi.stats.rollups.statements import RollupStatements
from arbstr_asgi.stats.sql import SqlDialect, SqlParameters, value_of
from arbstr_asgi.stats.timezones import local, local_date, period_number, period_start
from arbstr_asgi.stats.totals import TOTALS_PER_BATCH, Totals

_MOST_DAYS = 4000  # limit for zones whose days begin within an hour
_A_MILLISECOND = timedelta(milliseconds=1)


class StatsReader:
    """Runs statistics queries, one at a time."""

    def __init__(self, driver: Driver, sql_dialect: SqlDialect, cache: RollupCache) -> None:
        self._driver = driver
        self._cache = cache
        self._sql_dialect = sql_dialect
        self._rollups = RollupStatements(sql_dialect)

    async def summary(self, raw: Any, query: StatsQuery) -> Summary:
        """Statistics of each group, and of all rows."""
        resolved = ResolvedQuery.resolve(query)
        result: dict[GroupKey, Totals] = {}
        whole = Totals.empty()
        if resolved.since < resolved.until:
            async with self._driver.reading(raw):
                state = await self.rollup_state(raw, resolved.since, resolved.until)
                live = await self._gather(raw, resolved, state, query.limit, result)
                if query.group_by:
                    ungrouped = ResolvedQuery.resolve(msgspec.structs.replace(query, group_by=()))
                    whole = await self._whole(raw, ungrouped, state, live)
                else:
                    whole = result.get(((), 0), whole)
        return Summary(whole.figures(), await _groups(query, resolved, result))

    async def row_counts(self, raw: Any, resolved: ResolvedQuery, split: TimeSplit) -> dict[Keys, int]:
        """The number of rows of each group in the roll-ups; needs an open transaction."""
        return await self._rollup_reader(raw, resolved, split).row_counts()

    async def rolled_up_count(self, raw: Any) -> int:
        """The number of rows in all roll-ups."""
        ((total,),) = await self._driver.fetch(raw, self._rollups.everything)
        return int(total)

    async def first_kept(self, raw: Any) -> datetime:
        """The start of the first hour whose rows are not pruned."""
        ((pruned,),) = await self._driver.fetch(raw, self._rollups.state, ("pruned",))
        return period_start(pruned, HOUR)

    async def names(self, raw: Any, column: str) -> list[str]:
        """The distinct values of a column that is a dimension of roll-ups, sorted."""
        since, until = ALL_TIME
        resolved = ResolvedQuery.resolve(StatsQuery(since=since, until=until, group_by=(column,)))
        async with self._driver.reading(raw):
            split = await self.split(raw, resolved)
            result = set(await self.row_counts(raw, resolved, split))
            for span in split.rows:
                params = SqlParameters(self._sql_dialect.dialect)
                bounds = self._sql_dialect.between(params, *map(self._driver.read_timestamp, span))
                sql = (
                    f"SELECT DISTINCT {self._sql_dialect.key(column)} FROM {self._sql_dialect.requests} WHERE {bounds}"  # noqa: S608
                )
                result |= {(row[0],) for row in await self._driver.fetch(raw, sql, params.values)}
        return sorted(name for (key,) in result if (name := value_of(key)) is not None)

    async def rollup_state(self, raw: Any, since: datetime, until: datetime) -> RollupState:
        """Which roll-ups exist for this time range."""
        fetch, sql = self._driver.fetch, self._rollups
        ((sealed,),) = await fetch(raw, sql.state, ("sealed",))
        ((pruned,),) = await fetch(raw, sql.state, ("pruned",))
        first, end = period_number(since, HOUR), period_number(until, HOUR) + 1
        dirty = await fetch(raw, sql.dirty, (first, end))
        coarse = {
            period: frozenset(
                row[0] for row in await fetch(raw, sql.existing_periods, (period, first // hours, end // hours + 1))
            )
            for period, hours in COARSE.items()
        }
        return RollupState(sealed, pruned, frozenset(row[0] for row in dirty), coarse)

    async def split(self, raw: Any, resolved: ResolvedQuery) -> TimeSplit:
        """Which parts of the time range to read from roll-ups, and which from rows."""
        return _split(resolved, await self.rollup_state(raw, resolved.since, resolved.until))

    async def _gather(
        self, raw: Any, resolved: ResolvedQuery, state: RollupState, limit: int, result: dict[GroupKey, Totals]
    ) -> LiveRows:
        split = _split(resolved, state)
        if "hour" in resolved.time_units and resolved.names:
            last_hour = await self._rollup_reader(raw, resolved, split).last_hour(limit)
            split = split if last_hour is None else clip(split, last_hour + 1)
        live, rollups, selected = (
            await self._read_live(raw, resolved, split),
            self._rollup_reader(raw, resolved, split),
            None,
        )
        if resolved.names and not resolved.time_units:
            row_counts = await rollups.row_counts()
            for keys, total in (await live.row_counts()).items():
                row_counts[keys] = row_counts.get(keys, 0) + total
            selected = set(sorted(row_counts, key=lambda keys: (-row_counts[keys], keys))[:limit])
        result |= await rollups.totals(selected)
        for group_key, totals in (await live.totals(selected)).items():
            result[group_key] = Totals.sum([*totals, result[group_key]] if group_key in result else totals)
        return live

    async def _whole(self, raw: Any, resolved: ResolvedQuery, state: RollupState, live: LiveRows) -> Totals:
        """Totals of all rows; reuses `live`, read with the same filters, where its time ranges are the same."""
        split = _split(resolved, state)
        if live.spans != split.rows:
            live = await self._read_live(raw, resolved, split)
        rollups = await self._rollup_reader(raw, resolved, split).totals(None)
        return Totals.sum([Totals.empty(), *await live.whole(), *rollups.values()])

    async def _read_live(self, raw: Any, resolved: ResolvedQuery, split: TimeSplit) -> LiveRows:
        return await LiveRows.query(self._driver, self._sql_dialect, raw, resolved, split.rows)

    def _rollup_reader(self, raw: Any, resolved: ResolvedQuery, split: TimeSplit) -> RollupReader:
        return RollupReader(self._driver, self._rollups, self._cache, raw, resolved, split)


async def _groups(query: StatsQuery, resolved: ResolvedQuery, result: dict[GroupKey, Totals]) -> list[Group]:
    if not query.group_by:
        return [Group((), next(iter(result.values()), Totals.empty()).figures())]
    group_keys = sorted(result, key=lambda group_key: (group_key[1], -result[group_key].total, group_key[0]))[
        : query.limit
    ]
    return [
        Group(_keys(query, resolved, *group_key), result[group_key].figures())
        async for batch in in_batches(group_keys, TOTALS_PER_BATCH)
        for group_key in batch
    ]


def _keys(query: StatsQuery, resolved: ResolvedQuery, keys: Keys, time: int) -> tuple[Key, ...]:
    values: dict[str, Key] = {name: value_of(key) for name, key in zip(resolved.names, keys, strict=True)}
    if "hour" in resolved.time_units:
        instant = period_start(time, 1)
        values |= {"hour": local(instant, resolved.zone), "day": local_date(instant, resolved.zone)}
    elif resolved.time_units:
        values["day"] = datetime.fromordinal(time).date()
    return tuple(values[name] for name in query.group_by)


def _split(resolved: ResolvedQuery, state: RollupState) -> TimeSplit:
    if resolved.grouping is None:
        return only_rows(resolved.since, resolved.until, state)
    if resolved.seconds % HOUR:  # days of the zone begin within an hour
        if resolved.until - resolved.since > timedelta(days=_MOST_DAYS):
            return only_rows(resolved.since, resolved.until, state)
        state = state._replace(dirty=state.dirty | _split_hours(resolved, state))
    return split_time(resolved.since, resolved.until, state, coarse=not resolved.time_units or resolved.seconds == DAY)


def _split_hours(resolved: ResolvedQuery, state: RollupState) -> frozenset[int]:
    """The hours within which a day of the zone ends."""
    first, end = period_number(resolved.since, HOUR), min(period_number(resolved.until, HOUR), state.sealed)
    result = []
    for number in range(first, end):
        start, behind = period_start(number, HOUR), period_start(number + 1, HOUR) - _A_MILLISECOND
        if local_date(start, resolved.zone) != local_date(behind, resolved.zone):
            result.append(number)
    return frozenset(result)
