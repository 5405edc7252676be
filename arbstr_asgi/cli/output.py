"""Formats statistics and requests as text for a terminal. Values may come from another server, so all are escaped."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from arbstr_asgi.stats.timezones import zone_of

Keys = tuple[Any, ...]
Json = Mapping[str, Any]
MAX_BUCKETS = 60
_MAX_HOURLY = timedelta(days=3)  # longer ranges are shown by day
_BLOCKS = "▁▂▃▄▅▆▇█"
_USAGE_COLUMNS = ("input tokens", "output tokens", "cost (sats)", "saved (sats)", "unpriced")
_PERCENTILE_COLUMNS = ("p50 (ms)", "p95 (ms)", "p99 (ms)")
_SPARKLINE_COLUMNS = ("requests over time", "sats over time")
_COLUMNS = ("requests", "errors", *_USAGE_COLUMNS, *_PERCENTILE_COLUMNS)
_TOTAL_COLUMNS = (
    "requests",
    "errors",
    "in flight",
    *_USAGE_COLUMNS,
    "average (ms)",
    *_PERCENTILE_COLUMNS,
    "first token p50 (ms)",
)


class TimeBuckets(NamedTuple):
    """The hours or days of a time range, merged into at most MAX_BUCKETS columns of a sparkline."""

    unit: str
    starts: Sequence[str]
    units_per_bucket: int

    @classmethod
    def create(cls, since: datetime, until: datetime, zone: str) -> "TimeBuckets":
        """For a time range, by hour or by day."""
        unit = choose_unit(since, until)
        starts = list(_hours(since, until, zone) if unit == "hour" else _days(since, until, zone))
        return cls(unit, starts, max(-(-len(starts) // MAX_BUCKETS), 1))

    def __str__(self) -> str:
        return f"{self.units_per_bucket} {self.unit}s" if self.units_per_bucket > 1 else f"1 {self.unit}"

    def place_groups(self, groups: Iterable[Mapping[str, Any]], names: Sequence[str]) -> dict[Keys, list[list[Any]]]:
        """By the keys of the groups (the values of `names`): the groups in each bucket."""
        places = {start: index // self.units_per_bucket for index, start in enumerate(self.starts)}
        bucket_count = -(-len(self.starts) // self.units_per_bucket)
        found: dict[Keys, list[list[Any]]] = {}
        for group in groups:
            line = found.setdefault(tuple(group[name] for name in names), [[] for _ in range(bucket_count)])
            index = places.get(group[self.unit])
            if index is not None:
                line[index].append(group)
        return found


def choose_unit(since: datetime, until: datetime) -> str:
    """`hour` for a short time range, `day` for a long one."""
    return "hour" if until - since <= _MAX_HOURLY else "day"


def _hours(since: datetime, until: datetime, zone: str) -> Iterable[str]:
    local = since.astimezone(zone_of(zone))
    into = timedelta(minutes=local.minute, seconds=local.second, microseconds=local.microsecond)
    instant = since.astimezone(UTC) - into
    while instant < until:
        yield instant.astimezone(zone_of(zone)).isoformat(timespec="seconds")
        instant += timedelta(hours=1)


def _days(since: datetime, until: datetime, zone: str) -> Iterable[str]:
    first, last = (
        instant.astimezone(zone_of(zone)).toordinal() for instant in (since, until - timedelta(microseconds=1))
    )
    return (date.fromordinal(number).isoformat() for number in range(first, last + 1))


def stats_text(answer: Json, buckets: TimeBuckets | None = None, over_time: Sequence[Json] = ()) -> str:
    """The statistics as tables; `over_time` are the same groups by time, for sparklines."""
    names = tuple(answer.get("group_by", ()))
    since, until, zone = answer["since"], answer["until"], answer.get("tz", "UTC")
    header = f"{escape_terminal(since)} to {escape_terminal(until)}, {escape_terminal(zone)}"
    if answer.get("empty"):
        return f"{header}\n\n{escape_terminal(answer['message'])}"
    parts = [header, table([_figures(answer)], _TOTAL_COLUMNS, _TOTAL_COLUMNS), _sources(answer)]
    if buckets is not None and not set(names) - {buckets.unit}:
        (line,) = buckets.place_groups(over_time, ()).values() or [[]]
        sparklines = zip(_SPARKLINE_COLUMNS, _sparklines(line), strict=True)
        parts.append("\n".join(f"{name:<18}  {blocks}" for name, blocks in sparklines))
    if names:
        parts.append(_grouped(answer, names, buckets, over_time))
    if buckets is not None:
        parts.append(f"over time: a block is {buckets}; the highest is the most of its line")
    return "\n\n".join(parts)


def _grouped(answer: Json, names: Sequence[str], buckets: TimeBuckets | None, over_time: Sequence[Json]) -> str:
    rows = [{**{name: group[name] for name in names}, **_figures(group)} for group in groups_of(answer)]
    columns = [*names, *_COLUMNS]
    if buckets is not None and buckets.unit not in names:
        lines = buckets.place_groups(over_time, names)
        for row in rows:
            line = lines.get(tuple(row[name] for name in names), [])
            row |= dict(zip(_SPARKLINE_COLUMNS, _sparklines(line), strict=True))
        columns += _SPARKLINE_COLUMNS
    text = table(rows, columns, _COLUMNS)
    return f"{text}\n(more groups than are shown)" if answer.get("truncated") else text


def groups_of(answer: Json) -> list[Json]:
    """The groups of a response, each with its keys."""
    if "models" in answer:
        return [{"model": name, **figures} for name, figures in answer["models"].items()]
    return list(answer.get("groups", ()))


def _figures(found: Json) -> dict[str, Any]:
    counts, costs, latency = found["counts"], found["costs"], found["latency_ms"]
    return {
        "requests": counts["total"],
        "errors": counts["error"],
        "in flight": counts["in_flight"],
        "input tokens": costs["total_input_tokens"],
        "output tokens": costs["total_output_tokens"],
        "cost (sats)": costs["total_cost_sats"],
        "saved (sats)": found["savings_sats"],
        "unpriced": found["unpriced"],
        "average (ms)": _rounded(found["performance"]["avg_latency_ms"]),
        **{f"{name} (ms)": _rounded(latency[name]) for name in ("p50", "p95", "p99")},
        "first token p50 (ms)": _rounded(found["ttft_ms"]["p50"]),
    }


def _rounded(milliseconds: Any) -> Any:
    return None if milliseconds is None else round(milliseconds)


def _sources(found: Json) -> str:
    """A table of the tokens by usage source."""
    rows = [
        {"counted by": source.replace("_", ", "), "input tokens": each["input"], "output tokens": each["output"]}
        for source, each in found["tokens"].items()
    ]
    columns = ("counted by", "input tokens", "output tokens")
    return table(rows, columns, columns[1:])


def _sparklines(line: Iterable[Iterable[Json]]) -> tuple[str, str]:
    buckets = [list(bucket) for bucket in line]
    counts = [float(sum(group["counts"]["total"] for group in bucket)) for bucket in buckets]
    sats = [float(sum(group["costs"]["total_cost_sats"] for group in bucket)) for bucket in buckets]
    return sparkline(counts), sparkline(sats)


def sparkline(values: Sequence[float]) -> str:
    """A block character for each value, scaled to the maximum; a space for 0."""
    highest = max(values, default=0.0)
    if not highest > 0:
        return " " * len(values)
    return "".join(" " if value <= 0 else _BLOCKS[int(value / highest * 7.999)] for value in values)


def request_line(request: Json) -> str:
    """One request on one line."""
    tokens, timing = request["tokens"], request["timing"]
    error = request.get("error") or {}
    status = error.get("status") or ("200" if request["success"] else "-")
    cells = [
        (request["timestamp"], 24),
        (status, 3),
        (request["end_reason"], 19),
        (request.get("provider"), 12),
        (request["model"], 24),
        (request.get("end_user"), 12),
        (f"{_cell_text(tokens['input'])} in", 9),
        (f"{_cell_text(tokens['output'])} out", 9),
        (f"{_cell_text(request['cost']['sats'])} sats", 16),
        (f"{_cell_text(timing['latency_ms'])} ms", 9),
    ]
    line = "  ".join(_cell_text(value).ljust(width) for value, width in cells)
    return f"{line}  {escape_terminal(error['message'])}" if error.get("message") else line.rstrip()


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], right: Collection[str] = ()) -> str:
    """Rows as an aligned text table; the columns in `right` are right-aligned."""
    cells = [list(columns), *([_cell_text(row[name]) for name in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(_aligned(row, widths, [name in right for name in columns])).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _aligned(row: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> list[str]:
    return [
        cell.rjust(width) if at_right else cell.ljust(width)
        for cell, width, at_right in zip(row, widths, right, strict=True)
    ]


def _cell_text(value: object) -> str:
    if isinstance(value, Decimal):
        return f"{value.normalize():f}"
    return "-" if value is None else escape_terminal(value)


def escape_terminal(value: object) -> str:
    """One line of text with all control, formatting and bidi characters escaped."""
    text = value if isinstance(value, str) else str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def escape_terminal_json(text: str) -> str:
    """Equivalent JSON with those characters escaped."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)
