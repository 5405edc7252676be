"""How answers look: JSON, CSV and JSON Lines, and text on a terminal, without any I/O."""

import csv
import io
import json
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbstr_asgi.cli.output import (
    MAX_BUCKETS,
    TimeBuckets,
    escape_terminal,
    escape_terminal_json,
    groups_of,
    request_line,
    sparkline,
    stats_text,
    table,
)
from arbstr_asgi.cli.tail import SeenRequests
from arbstr_asgi.stats import serialize
from arbstr_asgi.stats.params import list_query, stats_query
from arbstr_asgi.stats.query import Cursor, Group, Page, Percentiles, Stats
from arbstr_asgi.stats.serialize import NO_FIGURES, csv_line, plain, row_format, to_json

NOW = datetime(2026, 11, 22, 10, 0, 0, 500_000, tzinfo=UTC)
SOME = Stats(
    total=10,
    success=7,
    error=2,
    streaming=4,
    input_tokens=70,
    output_tokens=170,
    tokens={"provider": (60, 150), "provider_partial": (10, 0), "estimated": (0, 20)},
    cost_sats=Decimal("12.340000000"),
    priced=8,
    savings_sats=Decimal("0.000000001"),
    latency_ms=Percentiles(100.5, 90.0, 200.0, 300.0),
    ttft_ms=Percentiles(50.0, 40.0, 60.0, 70.0),
    stream_duration_ms=Percentiles(),
)
TOLD = {
    "counts": {"total": 10, "success": 7, "error": 2, "streaming": 4, "in_flight": 1},
    "costs": {"total_cost_sats": Decimal("12.34"), "total_input_tokens": 70, "total_output_tokens": 170},
    "performance": {"avg_latency_ms": 100.5},
    "unpriced": 2,
    "savings_sats": Decimal("1E-9"),
    "tokens": {
        "provider": {"input": 60, "output": 150},
        "provider_partial": {"input": 10, "output": 0},
        "estimated": {"input": 0, "output": 20},
    },
    "latency_ms": {"p50": 90.0, "p95": 200.0, "p99": 300.0},
    "ttft_ms": {"p50": 40.0, "p95": 60.0, "p99": 70.0},
    "stream_duration_ms": {"p50": None, "p95": None, "p99": None},
}
ROW: dict[str, Any] = {
    "id": 7,
    "correlation_id": "c-1",
    "timestamp": datetime(2026, 11, 22, 9, 0, 0, 123_000, tzinfo=UTC),
    "model": "gpt",
    "provider": "alpha",
    "policy": None,
    "streaming": True,
    "input_tokens": 7,
    "output_tokens": None,
    "cost_sats": Decimal("1.500000000"),
    "latency_ms": 12,
    "stream_duration_ms": 34,
    "success": True,
    "error_status": None,
    "error_message": None,
    "end_user": "alice",
    "tenant": None,
    "cached_tokens": 3,
    "reasoning_tokens": None,
    "usage_source": "provider",
    "end_reason": "completed",
    "disconnect": None,
    "ttft_ms": 20,
    "attempts": 1,
}
FAILED = {
    **ROW,
    "provider": None,
    "cost_sats": None,
    "stream_duration_ms": None,
    "success": False,
    "error_status": 502,
    "error_message": "upstream_error",
}


def grouped(*pairs: tuple[str, str]) -> dict[str, Any]:
    """The answer to a question with these parameters, whose groups are all alike."""
    query = stats_query([*pairs], NOW)
    keys: dict[str, Any] = {"hour": datetime(2026, 11, 22, 10, tzinfo=timezone(timedelta(hours=1)))}
    keys["day"] = date(2026, 11, 22)
    group = Group(tuple(keys.get(name, "gpt") for name in query.group_by), SOME)
    return serialize.stats(query, SOME, [group], ["idle", "gpt"])


def test_stats() -> None:
    """Without groups there are the original's keys, and ours beside them."""
    query = stats_query([("since", "2026-11-22T00:00:00Z")], NOW)
    expected = {"since": "2026-11-22T00:00:00.000+00:00", "until": "2026-11-22T10:00:01.000+00:00", **TOLD}
    assert serialize.stats(query, SOME) == expected


def test_nothing() -> None:
    """A time without requests is said to be empty, and all its figures are 0 or unknown."""
    found = serialize.stats(stats_query([], NOW), NO_FIGURES)
    assert (found["empty"], found["message"]) == (True, "No requests found in the specified time range")
    assert found["counts"] == {"total": 0, "success": 0, "error": 0, "streaming": 0, "in_flight": 0}
    assert found["costs"] == {"total_cost_sats": 0, "total_input_tokens": 0, "total_output_tokens": 0}
    assert found["performance"] == {"avg_latency_ms": 0}


def test_models() -> None:
    """By model each has a member, those of the configuration too that nobody has asked for."""
    found = grouped(("group_by", "model"))
    assert [*found["models"]] == ["gpt", "idle"]
    assert found["models"]["gpt"] == TOLD
    assert found["models"]["idle"]["counts"]["total"] == 0
    assert "groups" not in found
    assert [group["model"] for group in groups_of(found)] == ["gpt", "idle"]


@pytest.mark.parametrize(
    ("group_by", "keys"),
    [
        ("provider", {"provider": "gpt"}),
        ("hour", {"hour": "2026-11-22T10:00:00+01:00"}),
        ("day,tenant", {"day": "2026-11-22", "tenant": "gpt"}),
        ("model,policy", {"model": "gpt", "policy": "gpt"}),
    ],
)
def test_groups(group_by: str, keys: dict[str, str]) -> None:
    """Other groups are a list, each with its keys first."""
    found = grouped(("group_by", group_by), ("tz", "Europe/Zurich"))
    assert found["groups"] == [{**keys, **TOLD}]
    assert (found["group_by"], found["tz"], found["truncated"]) == (group_by.split(","), "Europe/Zurich", False)


def test_truncated() -> None:
    """More groups than were asked for are cut off, and that is said; NULL is a key."""
    query = stats_query([("group_by", "tenant"), ("limit", "1")], NOW)
    found = serialize.stats(query, SOME, [Group((None,), SOME), Group(("a",), SOME)])
    assert ([group["tenant"] for group in found["groups"]], found["truncated"]) == ([None], True)


def test_page() -> None:
    """A page has the original's keys; a success has no error, and what is unknown is not zero."""
    asked = list_query([("per_page", "2"), ("page", "2")], NOW)
    found = serialize.requests(asked, Page([ROW, FAILED], 5, Cursor(NOW, 7)))
    head = {name: found[name] for name in ("page", "per_page", "total", "total_pages", "next_cursor")}
    assert head == {"page": 2, "per_page": 2, "total": 5, "total_pages": 3, "next_cursor": Cursor(NOW, 7).encode()}
    good, bad = found["data"]
    assert good == {
        "id": 7,
        "correlation_id": "c-1",
        "timestamp": "2026-11-22T09:00:00.123Z",
        "model": "gpt",
        "provider": "alpha",
        "policy": None,
        "end_user": "alice",
        "tenant": None,
        "streaming": True,
        "success": True,
        "end_reason": "completed",
        "disconnect": None,
        "attempts": 1,
        "usage_source": "provider",
        "tokens": {"input": 7, "output": None, "cached": 3, "reasoning": None},
        "cost": {"sats": Decimal("1.5")},
        "timing": {"latency_ms": 12, "ttft_ms": 20, "stream_duration_ms": 34},
    }
    assert bad["error"] == {"status": 502, "message": "upstream_error"}
    assert bad["cost"] == {"sats": None}
    assert "provider" not in bad
    assert "stream_duration_ms" not in bad["timing"]


def test_page_without_a_total() -> None:
    """Where counting would take long there is no total, and behind a cursor no page."""
    asked = list_query([("cursor", Cursor(NOW, 1).encode())], NOW)
    found = serialize.requests(asked, Page([], None, None))
    assert (found["total"], found["total_pages"], found["page"], found["next_cursor"]) == (None,) * 4


def test_detail() -> None:
    """A detail has all columns by their names, and the attempts."""
    attempt = {"number": 1, "cost_sats": Decimal("0.000000000"), "timestamp": NOW}
    found = serialize.detail(ROW, [attempt])
    assert {**found, "tries": None} == {**ROW, "timestamp": "2026-11-22T09:00:00.123Z", "tries": None}
    assert found["tries"] == [{"number": 1, "cost_sats": 0, "timestamp": "2026-11-22T10:00:00.500Z"}]


@given(st.decimals(-(10**30), 10**30, places=9))
def test_money_keeps_its_value(amount: Decimal) -> None:
    """As a JSON number an amount is the same, to the last digit, and no text."""
    raw = to_json({"x": plain(amount)})
    assert json.loads(raw, parse_float=Decimal, parse_int=Decimal)["x"] == amount
    assert b'"' not in raw.partition(b":")[2]


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=cmd|' /C calc'!A0", '="x"']


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas(text: str) -> None:
    """What a spreadsheet would run is text there, and comes back whole behind an apostrophe."""
    ((cell, other),) = csv.reader(io.StringIO(csv_line([text, f"a{text}"]).decode(), newline=""))
    assert (cell, other) == (f"'{text}", f"a{text}")


def test_csv_values() -> None:
    """Amounts are exact, what is unknown is empty, flags are words, and a negative number is no formula."""
    moment = datetime(2026, 11, 22, 9, tzinfo=UTC)
    values = [None, True, False, -5, Decimal("1E-9"), Decimal("100.500000000"), moment, 1.5, 'é,"\n']
    line = csv_line(values).decode()
    assert line == ',true,false,-5,0.000000001,100.500000000,2026-11-22T09:00:00.000Z,1.5,"é,""\n"\r\n'


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=5))
def test_any_csv(values: list[str]) -> None:
    """A reader of CSV gets back every text, but for the apostrophe that defuses."""
    (found,) = csv.reader(io.StringIO(csv_line(values).decode(), newline=""))
    assert [cell.removeprefix("'") for cell in found] == [value.removeprefix("'") for value in values]


def test_lines() -> None:
    """Both files name every column; a line of JSON has them all, too."""
    columns = ("id", "model", "cost_sats")
    row = {"id": 1, "model": "=a", "cost_sats": Decimal("0.100000000")}
    as_csv, as_json = row_format("csv", columns), row_format("jsonl", columns)
    assert as_csv.head + as_csv.encode_row(row) == b"id,model,cost_sats\r\n1,'=a,0.100000000\r\n"
    assert as_json.head + as_json.encode_row(row) == b'{"id":1,"model":"=a","cost_sats":0.1}\n'
    assert (as_csv.media_type, as_json.media_type) == ("text/csv; charset=utf-8", "application/x-ndjson")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([0, 0], "  "),
        ([1, 2, 3, 4, 5, 6, 7, 8], "▁▂▃▄▅▆▇█"),
        ([0, 0.0001, 1000], " ▁█"),
        ([-1, 0, 5], "  █"),
    ],
)
def test_sparkline(values: list[float], line: str) -> None:
    """A sparkline goes from nothing to the highest."""
    assert sparkline(values) == line


CONTROL = "\x1b[2J\x07\x9b31m\u202e\u200b\r\n\x00evil"


def test_shown() -> None:
    """Nothing that a terminal would obey is left, in text or in JSON, and the JSON still means the same."""
    assert escape_terminal(CONTROL).isprintable()
    assert escape_terminal("é 😀") == "é 😀"
    assert escape_terminal(5) == "5"
    told = escape_terminal_json(json.dumps({CONTROL: "\U000e0001é"}, ensure_ascii=False))
    assert told.isprintable()
    assert json.loads(told) == {CONTROL: "\U000e0001é"}


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_anything_shown(text: str) -> None:
    """Whatever comes, what is shown is printable."""
    assert escape_terminal(text).isprintable()
    assert json.loads(escape_terminal_json(json.dumps(text, ensure_ascii=False))) == text


def test_table() -> None:
    """Numbers end in a line where that is asked for, and no cell has control characters."""
    rows = [{"a": "x", "n": 5}, {"a": CONTROL, "n": Decimal("10.50")}]
    found = table(rows, ["a", "n"], ["n"])
    first, _, second, third = found.splitlines()
    assert (first.split(), second.split()) == (["a", "n"], ["x", "5"])
    assert len({len(line) for line in (first, second, third)}) == 1
    assert found.replace("\n", "").isprintable()


def decoded(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer after its way over the network."""
    return msgspec.json.Decoder(dict[str, Any], float_hook=Decimal).decode(to_json(answer))


def test_screen() -> None:
    """The text has a table of all and one of the groups, with units, and a sparkline for each."""
    pairs = [("since", "2026-11-20T00:00:00Z"), ("group_by", "provider")]
    answer = decoded(grouped(*pairs))
    steps = TimeBuckets.create(datetime(2026, 11, 19, tzinfo=UTC), datetime(2026, 11, 22, 10, tzinfo=UTC), "UTC")
    over_time = [
        {"provider": "gpt", "day": day, **decoded(dict(TOLD))} for day in ("2026-11-20", "2026-11-22", "1999-01-01")
    ]
    text = stats_text(answer, steps, over_time)
    for heading in ("cost (sats)", "saved (sats)", "p95 (ms)", "counted by", "sats over time", "a block is 1 day"):
        assert heading in text
    assert text.count("12.34") == 2
    assert " █ █ " in f"{text.splitlines()[-3]} "
    assert "more groups" in stats_text({**answer, "truncated": True})


def test_screen_without_groups() -> None:
    """Without groups the sparklines are those of all; without requests there is one sentence."""
    steps = TimeBuckets.create(datetime(2026, 11, 21, 8, tzinfo=UTC), datetime(2026, 11, 21, 10, tzinfo=UTC), "UTC")
    answer = decoded(grouped())
    hours = [{"hour": f"2026-11-21T0{hour}:00:00+00:00", **decoded(dict(TOLD))} for hour in (8, 9)]
    assert "requests over time  ██" in stats_text(answer, steps, hours)
    empty = decoded(serialize.stats(stats_query([], NOW), NO_FIGURES))
    assert stats_text(empty).splitlines()[-1] == "No requests found in the specified time range"


def test_screen_of_a_liar() -> None:
    """Whatever a server says in its answer, the terminal is told nothing."""
    answer = decoded(grouped(("group_by", "provider")))
    answer["groups"][0]["provider"] = CONTROL
    answer |= {"since": CONTROL, "tz": CONTROL}
    assert stats_text(answer).replace("\n", "").isprintable()
    page = decoded({"data": [serialize.request(FAILED)]})["data"]
    for name in ("timestamp", "model", "end_reason", "end_user"):
        page[0][name] = CONTROL
    page[0]["error"] = {"status": CONTROL, "message": CONTROL}
    assert request_line(page[0]).isprintable()


def test_request_line() -> None:
    """A line says when, what, whose, how much and how long, with units."""
    line = request_line(decoded(serialize.request(ROW)))
    parts = ("2026-11-22T09:00:00.123Z", "200", "completed", "alpha", "gpt", "alice", "7 in", "- out", "1.5 sats")
    assert [part for part in parts if part not in line] == []
    assert line.endswith("12 ms")
    assert request_line(decoded(serialize.request(FAILED))).endswith("upstream_error")


@pytest.mark.parametrize(
    ("length", "unit", "together"),
    [
        (timedelta(hours=1), "hour", 1),
        (timedelta(days=3), "hour", 2),
        (timedelta(days=7), "day", 1),
        (timedelta(days=365), "day", 7),
    ],
)
def test_steps(length: timedelta, unit: str, together: int) -> None:
    """A time has at most sixty steps, of hours for a short one and of days for a long one."""
    since = datetime(2026, 3, 28, 12, 30, tzinfo=UTC)
    steps = TimeBuckets.create(since, since + length, "Europe/Zurich")
    assert (steps.unit, steps.units_per_bucket) == (unit, together)
    assert len(steps.starts) <= MAX_BUCKETS * together
    assert len(set(steps.starts)) == len(steps.starts)


def test_hours_of_odd_zones() -> None:
    """Hours begin where the zone's clock says so, a quarter into one of UTC's too."""
    since = datetime(2026, 3, 28, 12, 30, tzinfo=UTC)
    steps = TimeBuckets.create(since, since + timedelta(hours=1), "Asia/Kathmandu")
    assert [*steps.starts] == ["2026-03-28T18:00:00+05:45", "2026-03-28T19:00:00+05:45"]


def test_recent() -> None:
    """What has finished is news once; what has not is none yet; what is too old is forgotten."""
    recent = SeenRequests()
    running = {"correlation_id": "a", "end_reason": "in_flight", "timestamp": "2026-01-01T00:00:00.000Z"}
    ended = {**running, "end_reason": "completed"}
    assert recent.new([running]) == []
    assert recent.new([ended, {**ended, "correlation_id": "b"}]) == [ended, {**ended, "correlation_id": "b"}]
    assert recent.new([ended]) == []
    recent.forget("2026-01-01T00:00:00.001Z")
    assert recent.new([ended]) == [ended]
