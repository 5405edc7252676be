"""Reads roll-ups for a query, by way of the cache."""

from collections.abc import Collection, Sequence
from typing import Any

from arbstr_asgi._utils import in_batches
from arbstr_asgi.database.drivers.base import Driver
from arbstr_asgi.stats.planner import COARSE, HOUR, PERIODS, Span, TimeSplit
from arbstr_asgi.stats.resolved_query import ResolvedQuery
from arbstr_asgi.stats.rollups.cache import CacheEntry, GroupKey, Keys, RollupCache
from arbstr_asgi.stats.rollups.statements import RollupStatements
from arbstr_asgi.stats.sql import SqlParameters
from arbstr_asgi.stats.totals import TOTALS_PER_BATCH, Totals


class RollupReader:
    """Reads the periods of one query from roll-ups, on one connection, within a transaction.

    Results are cached for the whole query and for each run of longer periods: those mostly stay valid when another hour
    is rolled up.
    """

    def __init__(
        self,
        driver: Driver,
        rollups: RollupStatements,
        cache: RollupCache,
        raw: Any,
        resolved: ResolvedQuery,
        split: TimeSplit,
    ) -> None:
        self._driver = driver
        self._rollups = rollups
        self._cache = cache
        self._raw = raw
        self._resolved = resolved
        self._spans = split.rolled
        self._generations: dict[str, int] = {}

    async def row_counts(self) -> dict[Keys, int]:
        """The number of rows of each group, over the whole time range."""
        if not self._spans:
            return {}
        entry = await self._cache_entry(self._spans)
        if entry.row_counts is None:
            result: dict[Keys, int] = {}
            for span in self._spans:
                for keys, total in (await self._span_row_counts(span)).items():
                    result[keys] = result.get(keys, 0) + total
            entry.row_counts = result
            self._cache.evict(entry)
        return {**entry.row_counts}

    async def last_hour(self, limit: int) -> int | None:
        """For groups by hour: the hour in which the limit of groups is reached, None if it is not."""
        for span in self._spans:
            params = SqlParameters(self._driver.dialect)
            sql = self._rollups.groups_per_period(params, self._resolved.dimensions, span, self._resolved.keys)
            for hour, groups in await self._driver.fetch(self._raw, sql, params.values):
                limit -= groups
                if limit <= 0:
                    return int(hour)
        return None

    async def totals(self, selected: set[Keys] | None) -> dict[GroupKey, Totals]:
        """The totals of the selected groups, or of all (None)."""
        if not self._spans:
            return {}
        entry = await self._cache_entry(self._spans)
        if not entry.complete and (selected is None or selected - entry.loaded):
            missing = None if selected is None else await self._with_runners_up(selected) - entry.loaded
            result: dict[GroupKey, list[Totals]] = {}
            for span in self._spans:
                for place, part in (await self._span_totals(span, missing)).items():
                    result.setdefault(place, []).append(part)
            async for batch in in_batches([*result.items()], TOTALS_PER_BATCH):
                entry.totals.update({place: Totals.sum(of) for place, of in batch})
            self._store(entry, missing)
        return _select(entry, selected)

    async def _with_runners_up(self, selected: set[Keys]) -> set[Keys]:
        """The selected groups and a few of the next largest, which are likely to be selected soon."""
        row_counts = await self.row_counts()
        most = sorted(row_counts, key=lambda keys: (-row_counts[keys], keys))[: len(selected) * 9 // 8 + 8]
        return {*selected, *most}

    async def _span_row_counts(self, span: Span) -> dict[Keys, int]:
        entry = await self._span_entry(span)
        if entry.row_counts is None:
            result: dict[Keys, int] = {}
            params = SqlParameters(self._driver.dialect)
            sql = self._rollups.row_counts(params, self._resolved.dimensions, span, self._resolved.keys)
            async for batch in in_batches(await self._driver.fetch(self._raw, sql, params.values)):
                for key1, key2, total in batch:
                    keys = self._resolved.pick_keys((key1, key2))
                    result[keys] = result.get(keys, 0) + int(total)
            entry.row_counts = result
            self._cache.evict(entry)
        return entry.row_counts

    async def _span_totals(self, span: Span, selected: set[Keys] | None) -> dict[GroupKey, Totals]:
        entry = await self._span_entry(span)
        if not entry.complete and (selected is None or selected - entry.loaded):
            missing = None if selected is None else selected - entry.loaded
            entry.totals.update(await self._read(span, missing))
            self._store(entry, missing)
        return _select(entry, selected)

    async def _read(self, span: Span, selected: Collection[Keys] | None) -> dict[GroupKey, Totals]:
        result: dict[GroupKey, list[Totals]] = {}
        params, resolved = SqlParameters(self._driver.dialect), self._resolved
        first = {keys[0] for keys in selected} if selected and resolved.names == resolved.dimensions[:1] else ()
        sql = self._rollups.rows(params, resolved.dimensions, span, resolved.keys, first)
        seconds = HOUR * PERIODS[span[0]]
        async for batch in in_batches(await self._driver.fetch(self._raw, sql, params.values), TOTALS_PER_BATCH):
            for start, key1, key2, *texts in batch:
                keys = resolved.pick_keys((key1, key2))
                if selected is None or keys in selected:
                    result.setdefault((keys, resolved.time_key(start * seconds)), []).append(Totals.decode(*texts))
        return {
            place: Totals.sum(of)
            async for batch in in_batches([*result.items()], TOTALS_PER_BATCH)
            for place, of in batch
        }

    async def _span_entry(self, span: Span) -> CacheEntry:
        """The cache entry of a run of periods; hours are not cached, since each new one changes their generation."""
        return await self._cache_entry([span]) if span[0] in COARSE else CacheEntry()

    async def _cache_entry(self, spans: Sequence[Span]) -> CacheEntry:
        if not self._generations:
            result = await self._driver.fetch(self._raw, self._rollups.generations)
            self._generations = {str(period): int(generation) for period, generation in result}
        resolved = self._resolved
        zone = resolved.zone_name if resolved.time_units else ""
        query = (resolved.dimensions, resolved.names, resolved.time_units, zone, resolved.seconds)
        generation = tuple(self._generations[period] for period, *_ in spans)
        return self._cache.get(generation, (*query, *sorted(resolved.keys.items()), *spans))

    def _store(self, entry: CacheEntry, missing: set[Keys] | None) -> None:
        if missing is None:
            entry.complete = True
        else:
            entry.loaded |= missing
        self._cache.evict(entry)


def _select(entry: CacheEntry, selected: set[Keys] | None) -> dict[GroupKey, Totals]:
    if selected is None:
        return entry.totals
    return {place: part for place, part in entry.totals.items() if place[0] in selected}
