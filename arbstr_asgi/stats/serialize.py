"""Serialises statistics and requests as JSON, CSV and JSON Lines; money is in sats and exact."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from typing import Any, NamedTuple

import msgspec

from arbstr_asgi.stats.params import ListQuery, format_timestamp
from arbstr_asgi.stats.query import Group, Key, Page, Percentiles, Stats, StatsQuery
from arbstr_asgi.stats.totals import Totals

Json = dict[str, Any]
EMPTY_MESSAGE = "No requests found in the specified time range"
NO_FIGURES = Totals.empty().figures()
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # a cell that begins with one is a formula for spreadsheets
_EXACT = Context(prec=200)
_json = msgspec.json.Encoder(decimal_format="number")


def stats(query: StatsQuery, whole: Stats, groups: Sequence[Group] = (), models: Iterable[str] = ()) -> Json:
    """The JSON of GET /v1/stats: statistics of all rows and, with `group_by`, of each group.

    Grouped by model alone it has `models`, an object by name that includes those of `models` without rows; otherwise
    `groups`, a list. `truncated`: there are more groups than the limit.
    """
    result: Json = {"since": format_timestamp(query.since), "until": format_timestamp(query.until)}
    if not whole.total:
        result |= {"empty": True, "message": EMPTY_MESSAGE}
    result |= figures(whole)
    if not query.group_by:
        return result
    result |= {"group_by": [*query.group_by], "tz": query.zone, "truncated": len(groups) > query.limit}
    listed = groups[: query.limit]
    if query.group_by == ("model",):
        unused = dict.fromkeys(models, NO_FIGURES)
        used = {str(group.keys[0]): group.figures for group in listed}
        result["models"] = {name: figures(each) for name, each in {**used, **unused, **used}.items()}
    else:
        result["groups"] = [
            {**dict(zip(query.group_by, map(_key, group.keys), strict=True)), **figures(group.figures)}
            for group in listed
        ]
    return result


def figures(result: Stats) -> Json:
    """Counts, sums and percentiles; `unpriced` requests have no known cost and are in no sum of sats."""
    return {
        "counts": {
            "total": result.total,
            "success": result.success,
            "error": result.error,
            "streaming": result.streaming,
            "in_flight": result.total - result.success - result.error,
        },
        "costs": {
            "total_cost_sats": plain(result.cost_sats),
            "total_input_tokens": result.input_tokens,
            "total_output_tokens": result.output_tokens,
        },
        "performance": {"avg_latency_ms": result.latency_ms.average or 0},
        "unpriced": result.total - result.priced,
        "savings_sats": plain(result.savings_sats),
        "tokens": {
            source: {"input": input_tokens, "output": output_tokens}
            for source, (input_tokens, output_tokens) in result.tokens.items()
        },
        "latency_ms": _percentiles(result.latency_ms),
        "ttft_ms": _percentiles(result.ttft_ms),
        "stream_duration_ms": _percentiles(result.stream_duration_ms),
    }


def _percentiles(percentiles: Percentiles) -> Json:
    return {"p50": percentiles.p50, "p95": percentiles.p95, "p99": percentiles.p99}


def _key(key: Key) -> str | None:
    if isinstance(key, datetime):
        return key.isoformat(timespec="seconds")
    return key.isoformat() if isinstance(key, date) else key


def requests(listing: ListQuery, page: Page) -> Json:
    """One page; `total` and `total_pages` are null where counting would take long, `page` with a cursor."""
    query = listing.query
    return {
        "data": [request(row) for row in page.rows],
        "page": listing.page,
        "per_page": query.limit,
        "total": page.total,
        "total_pages": None if page.total is None else -(-page.total // query.limit),
        "next_cursor": None if page.next is None else page.next.encode(),
        "since": format_timestamp(query.since),
        "until": format_timestamp(query.until),
    }


def request(row: Mapping[str, Any]) -> Json:
    """One request on a page; `error` is present where it failed."""
    timing = {"latency_ms": row["latency_ms"], "ttft_ms": row["ttft_ms"]}
    if row["stream_duration_ms"] is not None:
        timing["stream_duration_ms"] = row["stream_duration_ms"]
    result: Json = {
        "id": row["id"],
        "correlation_id": row["correlation_id"],
        "timestamp": to_json_value(row["timestamp"]),
        "model": row["model"],
        **({} if row["provider"] is None else {"provider": row["provider"]}),
        **{name: row[name] for name in ("policy", "end_user", "tenant", "streaming", "success")},
        **{name: row[name] for name in ("end_reason", "disconnect", "attempts", "usage_source")},
        "tokens": {
            "input": row["input_tokens"],
            "output": row["output_tokens"],
            "cached": row["cached_tokens"],
            "reasoning": row["reasoning_tokens"],
        },
        "cost": {"sats": to_json_value(row["cost_sats"])},
        "timing": timing,
    }
    if not row["success"] and (row["error_status"] is not None or row["error_message"] is not None):
        result["error"] = {"status": row["error_status"], "message": row["error_message"]}
    return result


def detail(row: Mapping[str, Any], attempts: Iterable[Mapping[str, Any]]) -> Json:
    """All columns of one request, and those of its attempts as `tries`."""
    return {**record(row), "tries": [record(attempt) for attempt in attempts]}


def record(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with all columns, in JSON types."""
    return {name: to_json_value(value) for name, value in row.items()}


def to_json_value(value: Any) -> Any:
    """One value in a JSON type; a Decimal becomes an exact number."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return plain(value) if isinstance(value, Decimal) else value


def plain(amount: Decimal) -> Decimal:
    """The same amount without trailing zeros."""
    shortest = amount.normalize(_EXACT)
    _, _, exponent = shortest.as_tuple()
    return shortest.quantize(Decimal(1), context=_EXACT) if isinstance(exponent, int) and exponent > 0 else shortest


def to_json(value: Mapping[str, Any]) -> bytes:
    """As JSON, with exact amounts as numbers."""
    return _json.encode(value)


class RowFormat(NamedTuple):
    """A file format for rows: media type, file suffix, header, and the encoder of a row."""

    media_type: str
    suffix: str
    head: bytes
    encode_row: Callable[[Mapping[str, Any]], bytes]


def row_format(file_format: str, columns: Iterable[str]) -> RowFormat:
    """`csv` or `jsonl`, with these columns in order."""
    names = tuple(columns)
    if file_format == "csv":
        return RowFormat(
            "text/csv; charset=utf-8", "csv", csv_line(names), lambda row: csv_line([row[n] for n in names])
        )
    return RowFormat("application/x-ndjson", "jsonl", b"", lambda row: to_json(record(row)) + b"\n")


def csv_line(values: Iterable[Any]) -> bytes:
    """One CSV record (RFC 4180); NULL is empty, text that a spreadsheet would run as a formula gets a leading `'`."""
    line: str = csv.writer(_Echo()).writerow(map(_cell, values))
    return line.encode("utf-8", "replace")


class _Echo:
    """Makes `writerow` return the line."""

    def write(self, line: str) -> str:
        return line


def _cell(value: Any) -> Any:
    match value:
        case bool():
            return "true" if value else "false"
        case Decimal():
            return f"{value:f}"
        case datetime():
            return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case str() if value.startswith(_FORMULA):
            return f"'{value}"
    return value
