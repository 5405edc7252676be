"""What the parameters of GET /v1/stats and /v1/requests are taken for, without any I/O."""

import base64
import json
import sys
import zoneinfo
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.errors import RequestError
from arbstr_asgi.stats.params import (
    END_REASONS,
    FILTERS,
    FOR_REQUESTS,
    FOR_STATS,
    FORMATS,
    end_of_second,
    format_timestamp,
    is_id,
    list_query,
    parse_timestamp,
    stats_query,
)
from arbstr_asgi.stats.query import GROUPS, SORTS, Cursor

NOW = datetime(2026, 11, 22, 10, 0, 0, 500_000, tzinfo=UTC)
END = datetime(2026, 11, 22, 10, 0, 1, tzinfo=UTC)
CURSOR = Cursor(NOW, 7).encode()
HOSTILE = [
    "",
    " ",
    "\0",
    "a\0b",
    "' OR 1=1 --",
    '"; DROP TABLE requests; --',
    "%' UNION SELECT 1 --",
    "../../etc/passwd",
    "${jndi:ldap://x}",
    "\x1b[31m",
    "\u202e",
    "9" * 5000,
    "-1",
    "1e9",
    "0x10",
    "٣",
    "NaN",
    "Infinity",
    "null",
    "[]",
    "{}",
    "x" * 100_000,
    "\ufffd",
    "😀",
]


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-22T10:00:00Z", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        ("2026-11-22t10:00:00z", datetime(2026, 11, 22, 10, tzinfo=UTC)),
        ("2026-11-22T10:00:00.5+01:00", datetime(2026, 11, 22, 9, 0, 0, 500_000, tzinfo=UTC)),
        ("2026-11-22T10:00:00 01:00", datetime(2026, 11, 22, 9, tzinfo=UTC)),
        ("2026-11-22T10:00:00-05:30", datetime(2026, 11, 22, 15, 30, tzinfo=UTC)),
        ("2026-11-22T10:00:00.123456789Z", datetime(2026, 11, 22, 10, 0, 0, 123_456, tzinfo=UTC)),
        ("2026-11-22T10:00:00-00:00", datetime(2026, 11, 22, 10, tzinfo=UTC)),
    ],
)
def test_moments(text: str, moment: datetime) -> None:
    """RFC 3339 is read in each of its forms, also where a plus has become a space on its way."""
    assert parse_timestamp(text) == moment
    assert parse_timestamp(text).utcoffset() == timedelta()


@pytest.mark.parametrize(
    "text",
    [
        *HOSTILE,
        "2026-11-22",
        "2026-11-22T10:00:00",
        "2026-11-22 10:00:00Z",
        "2026-11-22T10:00Z",
        "2026-13-01T00:00:00Z",
        "2026-02-30T00:00:00Z",
        "2026-11-22T24:00:00Z",
        "2026-11-22T10:00:60Z",
        "2026-11-22T10:00:00.Z",
        "2026-11-22T10:00:00+24:00",
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00",
        "9999-12-31T23:59:59-01:00",
        "2026-11-22T10:00:00Z\n",
        "٢٠٢٦-11-22T10:00:00Z",
        "1763805600",
    ],
)
def test_no_moments(text: str) -> None:
    """What is no moment, or one that no clock shows, is an error and nothing else."""
    with pytest.raises(ValueError, match=r"."):
        parse_timestamp(text)


@given(st.datetimes(), st.integers(-14 * 60, 14 * 60))
def test_any_moment(naive: datetime, minutes: int) -> None:
    """A moment that was written down is the same when it is read."""
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return
    assert parse_timestamp(format_timestamp(moment)) == moment


@given(st.datetimes(max_value=datetime(9999, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - it must be naive
def test_end_of_second(now: datetime) -> None:
    """The end of the current second is later than now, by a second at most, and whole."""
    end = end_of_second(now)
    assert now < end <= now + timedelta(seconds=1)
    assert end.microsecond == 0


@pytest.mark.parametrize(
    ("pairs", "since", "until"),
    [
        ([], NOW - timedelta(days=7), END),
        ([("range", "last_1h")], NOW - timedelta(hours=1), END),
        ([("range", "last_24h")], NOW - timedelta(days=1), END),
        ([("range", "last_30d")], NOW - timedelta(days=30), END),
        ([("since", "2026-11-22T10:00:00Z")], NOW.replace(microsecond=0), END),
        ([("since", "2026-11-22T10:00:00Z"), ("range", "last_1h")], NOW.replace(microsecond=0), END),
        ([("until", "2026-01-02T00:00:00Z"), ("range", "last_24h")], datetime(2026, 1, 1, tzinfo=UTC), None),
        ([("since", "2026-01-02T00:00:00Z"), ("until", "2026-01-02T00:00:00Z")], None, None),
    ],
)
def test_time(pairs: list[tuple[str, str]], since: datetime | None, until: datetime | None) -> None:
    """A range ends now, with the current second, or at `until`; `since` goes before it; an empty time is one."""
    expected_until = until or datetime(2026, 1, 2, tzinfo=UTC)
    for query in (stats_query(pairs, NOW), list_query(pairs, NOW).query):
        assert (query.since, query.until) == (since or expected_until, expected_until)


def test_defaults() -> None:
    """Without parameters: a week, no groups, UTC, the newest twenty."""
    query = stats_query([], NOW)
    assert (query.group_by, query.zone, query.limit, query.filters.given) == ((), "UTC", 100, {})
    asked = list_query([], NOW)
    assert (asked.format, asked.page, asked.query.limit, asked.query.offset) == ("json", 1, 20, 0)
    assert (asked.query.sort, asked.query.descending, asked.query.after) == ("timestamp", True, None)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("correlation_id", "a-1", "a-1"),
        ("model", "a/b: c 'é' 😀", "a/b: c 'é' 😀"),
        ("provider", "p", "p"),
        ("end_user", "", ""),
        ("tenant", "x" * 255, "x" * 255),
        ("policy", "%_", "%_"),
        ("end_reason", "timeout", "timeout"),
        ("status", "599", 599),
        ("success", "false", False),
        ("streaming", "true", True),
    ],
)
def test_filters(name: str, text: str, value: Any) -> None:
    """Each filter is taken as it is, by both endpoints."""
    assert stats_query([(name, text)], NOW).filters.given == {name: value}
    assert list_query([(name, text)], NOW).query.filters.given == {name: value}


@pytest.mark.parametrize("names", [("model",), ("day", "end_user"), ("hour", "day"), ("tenant", "policy")])
def test_groups(names: tuple[str, ...]) -> None:
    """One or two groups are taken, in the order in which they are given."""
    assert stats_query([("group_by", ",".join(names)), ("tz", "Europe/Zurich")], NOW).group_by == names


def test_pages_and_cursors() -> None:
    """Pages count from 1, down to 10,000 rows; a cursor is where another page ended."""
    last = list_query([("page", "100"), ("per_page", "100"), ("order", "ASC"), ("sort", "latency_ms")], NOW)
    assert (last.page, last.query.offset, last.query.limit, last.query.descending) == (100, 9900, 100, False)
    behind = list_query([("cursor", CURSOR), ("per_page", "7")], NOW)
    assert (behind.page, behind.query.after, behind.query.limit) == (None, Cursor(NOW, 7), 7)
    exported = list_query([("format", "csv"), ("cursor", CURSOR)], NOW)
    assert (exported.page, exported.format, exported.query.after) == (None, "csv", Cursor(NOW, 7))


def error_of(parse: Callable[..., object], *pairs: tuple[str, str]) -> RequestError | None:
    """What is said to be wrong with these parameters, if anything; what else is raised comes out."""
    try:
        parse([*pairs], NOW)
    except RequestError as error:
        return error
    return None


def refused(parse: Callable[..., object], *pairs: tuple[str, str]) -> RequestError:
    """The error for these parameters."""
    error = error_of(parse, *pairs)
    assert error is not None
    assert (error.status_code, error.type, error.code) == (400, "invalid_request_error", "invalid_parameter")
    return error


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("range", "last_2h", ["last_1h", "last_24h", "last_7d", "last_30d"]),
        ("end_reason", "bored", END_REASONS),
        ("success", "yes", ["true", "false"]),
        ("streaming", "1", ["true", "false"]),
        ("status", "99", ["100", "599"]),
        ("since", "yesterday", ["2026-11-22T10:00:00Z"]),
        ("until", "", ["RFC 3339"]),
        ("group_by", "tier", GROUPS),
        ("group_by", "model,model", GROUPS),
        ("group_by", "model,hour,day", GROUPS),
        ("group_by", "", GROUPS),
        ("tz", "Mars/Olympus", ["IANA", "Europe/Zurich"]),
        ("limit", "0", ["1", "10000"]),
        ("limit", "10001", ["1", "10000"]),
        ("sort", "model", SORTS),
        ("order", "up", ["asc", "desc"]),
        ("page", "0", ["1"]),
        ("page", "501", ["10,000", "next_cursor", "format"]),
        ("per_page", "101", ["1", "100"]),
        ("per_page", "0", ["1", "100"]),
        ("cursor", "abc", ["next_cursor"]),
        ("format", "xml", FORMATS),
    ],
)
def test_refusals(name: str, value: str, valid: list[str]) -> None:
    """What is not valid is refused by name, and what would be is listed."""
    error = refused(stats_query if name in FOR_STATS else list_query, (name, value))
    assert error.param == name
    assert [word for word in valid if word not in error.message] == []


def test_refusals_of_two() -> None:
    """So is what contradicts itself, is given twice or is not known at all."""
    for parse, known in ((stats_query, FOR_STATS), (list_query, FOR_REQUESTS)):
        late = refused(parse, ("since", "2026-11-22T10:00:02Z"))
        assert (late.param, "until" in late.message) == ("since", True)
        assert refused(parse, ("model", "a"), ("model", "a")).param == "model"
        unknown = refused(parse, ("grup_by\x1b", "model"))
        assert (unknown.param, [n for n in known if n not in unknown.message]) == ("grup_by\\x1b", [])
    assert refused(list_query, ("page", "2"), ("cursor", CURSOR)).param == "cursor"
    assert refused(list_query, ("sort", "cost_sats"), ("cursor", CURSOR)).param == "cursor"
    assert refused(list_query, ("format", "csv"), ("per_page", "5")).param == "per_page"
    assert refused(list_query, ("format", "jsonl"), ("page", "1")).param == "page"
    assert refused(stats_query, ("page", "1")).param == "page"
    assert refused(list_query, ("group_by", "model")).param == "group_by"
    assert refused(stats_query, ("until", "0001-01-01T00:00:00Z")).param == "until"


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", sorted({*FOR_STATS, *FOR_REQUESTS}))
def test_hostile_values(name: str, value: str) -> None:
    """Each parameter takes a hostile value as mere text, or refuses it without quoting it."""
    for parse, known in ((stats_query, FOR_STATS), (list_query, FOR_REQUESTS)):
        if name not in known:
            continue
        error = error_of(parse, (name, value))
        if error is None:
            assert name in (*FILTERS, "tz")
            assert "\0" not in value
            assert len(value) <= 255
        else:
            assert (error.status_code, error.param) == (400, name)
            assert len(error.message) < 400
            assert len(value) < 3 or value not in error.message


@given(st.lists(st.tuples(st.sampled_from([*FOR_STATS, *FOR_REQUESTS]), st.text(max_size=40)), max_size=4))
def test_any_values(pairs: list[tuple[str, str]]) -> None:
    """Whatever is asked, there is a query or a 400 that names a parameter."""
    for parse in (stats_query, list_query):
        error = error_of(parse, *pairs)
        if error is not None:
            assert error.status_code == 400
            assert error.message
            assert error.param in {name for name, _ in pairs} | {"since"}


@given(
    st.one_of(
        st.none().map(lambda _: ("cost_sats", None)),
        st.decimals(0, 10**14, places=9).map(lambda d: ("cost_sats", d)),
        st.integers(0, 2**62).map(lambda n: ("latency_ms", n)),
        st.just(("timestamp", NOW.replace(microsecond=123_000))),
    ),
    st.integers(0, 2**62),
)
def test_any_cursor(sorted_by: tuple[str, Any], number: int) -> None:
    """A cursor that was handed out is understood, for its own sort."""
    sort, value = sorted_by
    found = list_query([("cursor", Cursor(value, number).encode()), ("sort", sort)], NOW).query.after
    assert found == Cursor(value, number)
    assert isinstance(value, Decimal | int | datetime | None)


@pytest.mark.parametrize(("text", "is_one"), [("a-1", True), ("x" * 36, True), ("x" * 37, False), ("é", False)])
def test_ids(text: str, is_one: bool) -> None:
    """Only what can be a correlation id is looked for."""
    assert is_id(text) is is_one
    assert not is_id("a\0")


def test_the_page_names_every_parameter() -> None:
    """The table of docs/guide/ledger.md has each parameter, and no other."""
    text = (Path(__file__).parents[3] / "docs" / "guide" / "ledger.md").read_text("utf-8")
    table = text.partition("## By HTTP")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert {name.strip("` ") for cell in cells for name in cell.split(",")} == {*FOR_STATS, *FOR_REQUESTS}


@pytest.mark.parametrize("amount", ["1E-300000000", "1E-99999999999", "1E+14", "0E-10", "sNaN", "1" * 150])
def test_a_cursor_with_an_amount_that_takes_long_to_write_out(amount: str) -> None:
    """An amount with an exponent that the ledger never has is refused before anybody writes out its digits."""
    text = base64.urlsafe_b64encode(json.dumps(["m", amount, 1], separators=(",", ":")).encode()).decode().rstrip("=")
    with pytest.raises(ValueError, match="not a cursor"):
        Cursor.decode(text)


def test_without_a_database_of_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither the system nor a package has time zones, the error says what is missing; UTC works."""
    for name in {"tzdata", *(name for name in sys.modules if name.startswith("tzdata."))}:
        monkeypatch.setitem(sys.modules, name, None)
    zoneinfo.reset_tzpath(to=())
    zoneinfo.ZoneInfo.clear_cache()
    try:
        with pytest.raises(RequestError, match="tzdata"):
            stats_query([("tz", "Europe/Zurich")], NOW)
        assert stats_query([("tz", "UTC")], NOW).zone == "UTC"
    finally:
        zoneinfo.reset_tzpath()
        zoneinfo.ZoneInfo.clear_cache()
