"""What may be asked of the ledger, as values: what is refused, cursors as text, histograms, time zones."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from math import ceil
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from arbstr_asgi.config.provider import Provider
from arbstr_asgi.gateway.auth import Caller
from arbstr_asgi.gateway.record import CallRecord, Stopwatch
from arbstr_asgi.protocols.usage import Usage
from arbstr_asgi.stats import histogram
from arbstr_asgi.stats.planner import HOUR, PERIODS, RollupState, only_rows, split_time
from arbstr_asgi.stats.query import Cursor, RequestsQuery, StatsQuery
from arbstr_asgi.stats.timezones import period_number, period_start, truncate_bound

NOW = datetime(2026, 1, 5, 12, 30, tzinfo=UTC)
RANGE: dict[str, Any] = {"since": NOW - timedelta(days=1), "until": NOW}


@pytest.mark.parametrize(
    "wrong",
    [
        {"since": NOW.replace(tzinfo=None)},
        {"group_by": ("model", "model")},
        {"group_by": ("model", "day", "tenant")},
        {"group_by": ("colour",)},
        {"limit": -1},
        {"zone": "Europe/Nowhere"},
        {"zone": "../../etc/passwd"},
        {"zone": ""},
        {"zone": "a\0b"},
    ],
)
def test_wrong_questions_about_figures(wrong: dict[str, Any]) -> None:
    """Each is a ValueError."""
    with pytest.raises(ValueError, match=r"time zone|group_by|limit"):
        StatsQuery(**{**RANGE, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"until": NOW.replace(tzinfo=None)},
        {"sort": "model"},
        {"limit": -1},
        {"offset": -1},
        {"after": Cursor(7, 1)},
        {"after": Cursor(None, 1)},
        {"after": Cursor(NOW, 1), "sort": "cost_sats"},
        {"after": Cursor(True, 1), "sort": "latency_ms"},
    ],
)
def test_wrong_questions_about_rows(wrong: dict[str, Any]) -> None:
    """Each is a ValueError."""
    with pytest.raises(ValueError, match=r"time zone|sort|limit|after"):
        RequestsQuery(**{**RANGE, **wrong})


MOMENTS = st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(microsecond=0))
VALUES = st.one_of(
    st.none(), st.integers(-(2**63), 2**63 - 1), st.decimals(-(10**15) + 1, 10**15 - 1, places=9), MOMENTS
)


@given(VALUES, st.integers(0, 2**63 - 1))
def test_a_cursor_is_a_text(value: Any, number: int) -> None:
    """What is written is read, and is safe in a URL."""
    text = Cursor(value, number).encode()
    assert Cursor.decode(text) == Cursor(value, number)
    assert text.isascii()
    assert not set(text) & set("+/=&?# ")


@given(st.one_of(st.text(), st.binary().map(lambda raw: raw.hex()), st.from_regex(r"[A-Za-z0-9_-]{0,120}")))
@example("W10")
@example("W251bGwsbnVsbCxudWxsXQ")
@example("é" * 300)
@example("A" * 10_000)
@example(Cursor(Decimal("NaN"), 1).encode())
@example(Cursor(Decimal("1e15"), 1).encode())
@example(Cursor(2**63, 1).encode())
@example(Cursor(1, -1).encode())
@example(Cursor(1, 2**63).encode())
@example(Cursor(1, 1).encode() + "=")
def test_anything_else_is_no_cursor(text: str) -> None:
    """It is a ValueError, and nothing else."""
    try:
        found = Cursor.decode(text)
    except ValueError:
        return
    assert found.encode() == text


@given(st.lists(st.one_of(st.integers(-5, 300_000), st.sampled_from([4095, 4096, 262143, 262144, 2**62]))))
def test_values_are_counted_where_they_belong(values: list[int]) -> None:
    """Numbers that a database lists are in the buckets that each of them has alone."""
    found = histogram.count(",".join(map(str, values)))
    assert found == (histogram.of(Counter(map(histogram.bucket, values))), sum(values))


@given(st.dictionaries(st.integers(0, histogram.bucket(histogram.MAX_VALUE)), st.integers(1, 2**64 - 1)))
@example({})
@example({5: 255})
@example({5: 256, 9: 1})
@example(dict.fromkeys(range(100, 300), 3))
@example(dict.fromkeys(range(1088), 2**64 - 1))
def test_a_histogram_is_a_text(counted: dict[int, int]) -> None:
    """What is written is read, few buckets or many, small counts or large."""
    found = histogram.of(counted)
    text = histogram.encode(found)
    assert histogram.decode(text) == found
    assert {place: number for place, number in enumerate(histogram.counts(found)) if number} == counted
    assert repr(found) == f"<Histogram of {sum(counted.values())} values>"
    assert len(text) <= len(json.dumps({str(place): number for place, number in counted.items()}))


@given(st.lists(st.integers(0, 10**7), min_size=1), st.integers(1, 100))
def test_percentiles_are_nearly_exact(values: list[int], percent: int) -> None:
    """Within 1.6 %, exact below 64, from histograms that were written, read and added up."""
    each = (histogram.of({histogram.bucket(value): 1}) for value in values)
    some = histogram.add_all(histogram.decode(histogram.encode(one)) for one in each)
    count, (found,) = histogram.percentiles(some, percent)
    assert count == len(values)
    exact = sorted(values)[ceil(percent * len(values) / 100) - 1]
    assert found is not None
    assert abs(found - exact) <= (exact / 64 if exact >= 64 else 0)


@given(st.datetimes(timezones=st.timezones()))
def test_bounds_part_rows_as_the_moment_does(moment: datetime) -> None:
    """Rows have milliseconds: what is before the bound is before the moment."""
    found = truncate_bound(moment)
    assert found.microsecond % 1000 == 0 or found.year == 9999
    if 1 < moment.year < 9999:
        assert timedelta() <= found - moment < timedelta(milliseconds=1)
        number = period_number(found, HOUR)
        assert period_start(number, HOUR) <= found < period_start(number + 1, HOUR)


@given(
    st.integers(-50, 90),
    st.integers(0, 140),
    st.integers(-60, 200),
    st.integers(0, 100),
    st.sets(st.integers(0, 100)),
    st.sets(st.integers(0, 4)),
    st.sets(st.integers(0, 16)),
    st.booleans(),
)
def test_each_moment_is_read_once(
    first: int, length: int, sealed: int, pruned: int, dirty: set[int], days: set[int], parted: set[int], coarse: bool
) -> None:
    """Periods and rows are all of the time between the bounds, none of it twice, and none that isn't known."""
    quarter = timedelta(minutes=15)
    base = period_number(datetime(2026, 1, 1, tzinfo=UTC), HOUR)
    since = period_start(base, HOUR) + quarter * first * 4 + quarter
    until = since + quarter * length
    known = RollupState(
        base + sealed,
        base + min(pruned, sealed),
        frozenset(base + hour for hour in dirty),
        {
            "day": frozenset(base // 24 + day for day in days),
            "6h": frozenset(base // 6 + number for number in parted),
        },
    )
    found = split_time(since, until, known, coarse=coarse)
    spans = [
        (period_start(a, PERIODS[kind] * HOUR), period_start(b, PERIODS[kind] * HOUR)) for kind, a, b in found.rolled
    ]
    edge = period_start(known.pruned, HOUR)
    rolled = sum((b - a for a, b in spans), timedelta())
    live = sum((b - a for a, b in found.rows), timedelta())
    in_rows = sorted([*spans, *found.rows])
    assert all(one[1] <= other[0] for one, other in pairwise(in_rows))
    assert all(since <= a < b <= until for a, b in in_rows)
    assert all(a >= edge for a, _ in found.rows)
    lost = until - since - rolled - live
    assert lost <= 2 * timedelta(hours=1)
    assert lost == timedelta() or since < edge
    for a, b in spans:
        assert b <= period_start(known.sealed, HOUR)
        assert not any(max(a, edge) <= period_start(hour, HOUR) < b for hour in known.dirty)
    assert coarse or {kind for kind, *_ in found.rolled} <= {"hour"}
    for kind in known.coarse if coarse else ():
        made = {span for period, a, b in found.rolled if period == kind for span in range(a, b)}
        assert made <= known.coarse[kind]
    (everything,) = only_rows(since, until, known).rows or [(until, until)]
    assert everything == (max(since, edge), until) or max(since, edge) >= until


def saved(*providers: Provider, usage: Usage | None) -> Decimal | None:
    """The dearest cost of a call."""
    account = CallRecord("c", NOW, "m", Caller("u"), "w", streaming=False, clock=Stopwatch(0.0, lambda: 0.001))
    account.candidates = providers
    account.reply.usage = usage
    account.begin(providers[0], "m")
    return account.commit(200).dearest_cost_sats


def test_the_dearest_candidate_is_recorded() -> None:
    """By the rates of its own model, where the cost of at least two is known; a single one saves nothing."""
    usage = Usage(input_tokens=1_000_000, output_tokens=0)
    url = "http://h"
    cheap = Provider(name="a", url=url, input_rate=1, output_rate=1)
    dear = Provider(name="b", url=url, aliases={"m": "big"}, model_rates={"big": {"input_rate": 9, "output_rate": 1}})  # type: ignore[dict-item]
    unknown = Provider(name="c", url=url)
    assert saved(cheap, dear, usage=usage) == 9
    assert saved(cheap, dear, unknown, usage=usage) == 9
    assert saved(cheap, unknown, usage=usage) is None
    assert saved(cheap, usage=usage) is None
    assert saved(cheap, dear, usage=None) is None
