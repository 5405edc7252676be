"""Answers of the ledger as text for a terminal. They may be another server's: nothing in them is shown as it is."""

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from arbstr_asgi.terminal.series import TimeBuckets
from arbstr_asgi.terminal.shown import escape_terminal
from arbstr_asgi.terminal.sparkline import sparkline
from arbstr_asgi.terminal.table import table

Json = Mapping[str, Any]

_MONEY = ("input tokens", "output tokens", "cost (sats)", "saved (sats)", "unpriced")
_TIMES = ("p50 (ms)", "p95 (ms)", "p99 (ms)")
_COLUMNS = ("requests", "errors", *_MONEY, *_TIMES)
_OF_ALL = ("requests", "errors", "in flight", *_MONEY, "average (ms)", *_TIMES, "first token p50 (ms)")
_LINES = ("requests over time", "sats over time")


def stats_text(answer: Json, steps: TimeBuckets | None = None, over_time: Sequence[Json] = ()) -> str:
    """The figures as tables; `over_time` are the same groups by `steps`, for the sparklines."""
    names = tuple(answer.get("group_by", ()))
    said = f"{escape_terminal(answer['since'])} to {escape_terminal(answer['until'])}, {escape_terminal(answer.get('tz', 'UTC'))}"
    if answer.get("empty"):
        return f"{said}\n\n{escape_terminal(answer['message'])}"
    parts = [said, table([_figures(answer)], _OF_ALL, _OF_ALL), _sources(answer)]
    if steps is not None and not set(names) - {steps.unit}:
        (line,) = steps.put(over_time, ()).values() or [[]]
        drawn = zip(_LINES, _sparklines(line), strict=True)
        parts.append("\n".join(f"{name:<18}  {blocks}" for name, blocks in drawn))
    if names:
        parts.append(_grouped(answer, names, steps, over_time))
    if steps is not None:
        parts.append(f"over time: a block is {steps}; the highest is the most of its line")
    return "\n\n".join(parts)


def _grouped(answer: Json, names: Sequence[str], steps: TimeBuckets | None, over_time: Sequence[Json]) -> str:
    rows = [{**{name: group[name] for name in names}, **_figures(group)} for group in groups_of(answer)]
    columns = [*names, *_COLUMNS]
    if steps is not None and steps.unit not in names:
        lines = steps.put(over_time, names)
        for row in rows:
            line = lines.get(tuple(row[name] for name in names), [])
            row |= dict(zip(_LINES, _sparklines(line), strict=True))
        columns += _LINES
    text = table(rows, columns, _COLUMNS)
    return f"{text}\n(more groups than are shown)" if answer.get("truncated") else text


def groups_of(answer: Json) -> list[Json]:
    """The groups of an answer, each with its keys, whatever they are grouped by."""
    if "models" in answer:
        return [{"model": name, **figures} for name, figures in answer["models"].items()]
    return list(answer.get("groups", ()))


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
        (f"{_display(tokens['input'])} in", 9),
        (f"{_display(tokens['output'])} out", 9),
        (f"{_display(request['cost']['sats'])} sats", 16),
        (f"{_display(timing['latency_ms'])} ms", 9),
    ]
    line = "  ".join(_display(value).ljust(width) for value, width in cells)
    return f"{line}  {escape_terminal(error['message'])}" if error.get("message") else line.rstrip()


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


def _sources(found: Json) -> str:
    """Who has counted the tokens."""
    rows = [
        {"counted by": source.replace("_", ", "), "input tokens": each["input"], "output tokens": each["output"]}
        for source, each in found["tokens"].items()
    ]
    columns = ("counted by", "input tokens", "output tokens")
    return table(rows, columns, columns[1:])


def _sparklines(line: Iterable[Iterable[Json]]) -> tuple[str, str]:
    steps = [list(step) for step in line]
    counts = [float(sum(group["counts"]["total"] for group in step)) for step in steps]
    sats = [float(sum(group["costs"]["total_cost_sats"] for group in step)) for step in steps]
    return sparkline(counts), sparkline(sats)


def _rounded(milliseconds: Any) -> Any:
    return None if milliseconds is None else round(milliseconds)


def _display(value: object) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}"
    return "-" if value is None else escape_terminal(value)
