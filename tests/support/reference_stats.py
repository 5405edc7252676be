"""Figures, pages and their order computed a second time, row by row in Python, without any of the code under test."""

from collections.abc import Iterable
from datetime import date, datetime, timedelta
from decimal import Decimal, localcontext
from math import ceil
from typing import Any
from zoneinfo import ZoneInfo

import msgspec

from arbstr_asgi.stats.query import Filters, Group, RequestsQuery, StatsQuery, Summary

Row = dict[str, Any]
TIMES = ("hour", "day")
MOST_OFF = 1 / 64
LONGEST = 2**40 - 1  # ms, that a percentile can be


def fitting(rows: Iterable[Row], since: datetime, until: datetime, filters: Filters) -> list[Row]:
    """The rows that a query is about."""
    return [row for row in rows if since <= row["timestamp"] < until and fits(row, filters)]


def fits(row: Row, filters: Filters) -> bool:
    """Whether a row has all that the filters ask for."""
    for name, value in filters.given.items():
        if name == "status":
            success = value == 200 and row["success"] and row["error_status"] is None
            if row["error_status"] != value and not success:
                return False
        elif row[name] != value:
            return False
    return True


def key(row: Row, name: str, zone: ZoneInfo) -> Any:
    """What a row is grouped by; an hour is told from the same one an hour later, when clocks are put back."""
    if name not in TIMES:
        return row[name]
    local = row["timestamp"].astimezone(zone)
    if name == "day":
        return local.date()
    into = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    return row["timestamp"] - into


def compare(groups: list[Group], rows: Iterable[Row], query: StatsQuery) -> None:
    """Assert that the answer to a query is right, in full and in its order."""
    zone = ZoneInfo(query.zone)
    expected: dict[tuple[Any, ...], list[Row]] = {} if query.group_by else {(): []}
    for row in fitting(rows, query.since, query.until, query.filters):
        expected.setdefault(tuple(key(row, name, zone) for name in query.group_by), []).append(row)
    times = [place for place, name in enumerate(query.group_by) if name in TIMES]
    hours = [place for place, name in enumerate(query.group_by) if name == "hour"]
    ranks = [((*(found[i] for i in times),), -len(expected[found])) for found in expected]
    assert len(groups) == (min(len(expected), query.limit) if query.group_by else 1)
    said = []
    for group in groups:
        for place, name in enumerate(query.group_by):
            value = group.keys[place]
            kind = {"hour": datetime, "day": date}.get(name, str | None)
            assert isinstance(value, kind)
            if place in hours:
                assert isinstance(value, datetime)
                assert value.utcoffset() == value.astimezone(zone).utcoffset()
        in_utc = tuple(
            value.astimezone(ZoneInfo("UTC")) if isinstance(value, datetime) else value for value in group.keys
        )
        check(group, expected[in_utc])
        said.append(((*(in_utc[i] for i in times),), -group.figures.total))
    assert said == sorted(ranks)[: len(groups)]
    assert len({group.keys for group in groups if not hours}) == (len(groups) if not hours else 0)


def compare_summary(found: Summary, rows: list[Row], query: StatsQuery) -> None:
    """Assert that the groups are right, and the figures of everything."""
    compare(found.groups, rows, query)
    compare([Group((), found.whole)], rows, msgspec.structs.replace(query, group_by=()))


def check(group: Group, rows: list[Row]) -> None:
    """Assert that the figures are those of these rows."""
    figures = group.figures
    assert figures.total == len(rows)
    assert figures.success == sum(row["success"] for row in rows)
    assert figures.error == sum(not row["success"] and row["end_reason"] != "in_flight" for row in rows)
    assert figures.streaming == sum(row["streaming"] for row in rows)
    assert (figures.input_tokens, figures.output_tokens) == tokens(rows)
    for source, found in figures.tokens.items():
        assert found == tokens([row for row in rows if row["usage_source"] == source])
    priced = [row for row in rows if row["cost_sats"] is not None]
    both = [row for row in priced if row["dearest_cost_sats"] is not None]
    with localcontext(prec=80):
        assert figures.priced == len(priced)
        assert figures.cost_sats == sum((row["cost_sats"] for row in priced), Decimal(0))
        saved = sum((row["dearest_cost_sats"] - row["cost_sats"] for row in both), Decimal(0))
        assert figures.savings_sats == saved
    for name in ("latency_ms", "ttft_ms", "stream_duration_ms"):
        spread, values = getattr(figures, name), sorted(row[name] for row in rows if row[name] is not None)
        if not values:
            assert (spread.average, spread.p50, spread.p95, spread.p99) == (None,) * 4
            continue
        assert spread.average == sum(values) / len(values)
        for percent in (50, 95, 99):
            exact = min(max(values[ceil(percent * len(values) / 100) - 1], 0), LONGEST)
            said = getattr(spread, f"p{percent}")
            assert abs(said - exact) <= (exact * MOST_OFF if exact >= 64 else 0)


def tokens(rows: list[Row]) -> tuple[int, int]:
    """Input and output in all."""
    return sum(row["input_tokens"] or 0 for row in rows), sum(row["output_tokens"] or 0 for row in rows)


def in_order(rows: Iterable[Row], query: RequestsQuery) -> list[Row]:
    """All the rows that a query is about, as its pages have them."""
    found = fitting(rows, query.since, query.until, query.filters)

    known = [row for row in found if row[query.sort] is not None]
    unknown = [row for row in found if row[query.sort] is None]
    return [
        *sorted(known, key=lambda row: (row[query.sort], row["id"]), reverse=query.descending),
        *sorted(unknown, key=lambda row: row["id"], reverse=query.descending),
    ]
