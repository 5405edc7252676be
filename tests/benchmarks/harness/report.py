"""The results as text."""

import os
import platform
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from harness.measures import MANY, PLAIN, STREAM, cpu_name

COLUMNS = {
    "CPU µs a call": cpu_name(PLAIN, MANY),
    "CPU µs a chunk": cpu_name(STREAM, MANY),
}

PACKAGES = ("uvicorn", "hypercorn", "granian", "uvloop", "httpx", "aiohttp", "databases", "starlette")

Results = Mapping[str, Mapping[str, Any]]


def conditions() -> dict[str, Any]:
    """What a run is to be read with: the command, the machine and what was installed."""
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "load": os.getloadavg(),
    }


def ratio(results: Results, name: str, figure: str) -> float | None:
    """A CPU figure against that of the target it is compared with: the median of the rounds' own ratios."""
    one = results[name]
    base = results.get(one["base"] or "")
    mine, theirs = one["cpu"].get(figure), None if base is None else base["cpu"].get(figure)
    if not mine or not theirs:
        return None
    return median([own / other for own, other in zip(mine, theirs, strict=True) if other > 0])


def ratios(results: Results) -> dict[str, float]:
    """What the guard looks at: plain calls and chunks of ours on SQLite at many connections."""
    found = {}
    for name in results:
        for figure in (cpu_name(PLAIN, MANY), cpu_name(STREAM, MANY)):
            one = ratio(results, name, figure)
            if one is not None and name.endswith("ours, SQLite"):
                found[f"{name}: {figure}"] = one
    return found


def table(results: Results, pieces: Mapping[str, float]) -> str:
    """Everything as text."""
    lines = []
    for name, one in results.items():
        lines.append(f"{name}" + (f" (against {one['base']})" if one["base"] else ""))
        for figure, values in one["cpu"].items():
            against = ratio(results, name, figure)
            said = (
                "unknown"
                if values is None
                else f"{median(values):10.1f}" + ("" if against is None else f"{against:8.2f}")
            )
            lines.append(f"  {figure:42}{said}")
        for label, figures in (("p50", one["p50"]), ("p99", one["p99"])):
            for connections, value in figures.items():
                more = added(results, value, label, connections)
                lines.append(f"  ms added to a plain call, {label}, {connections:>2} at once{more:16.2f}")
        lines.append(f"  ms to the first chunk of a stream, p50{one['first_chunk']:14.2f}")
        lines.append(f"  plain calls a second, {MANY} connections{one['rate']:14.0f}")
        if "rows_found" in one:
            lines.append(f"  rows expected {one['rows_expected']}, rows found {one['rows_found']}")
        lines.append("")
    lines.append("pieces alone, CPU µs")
    lines += [f"  {name:50}{each:10.2f}" for name, each in pieces.items()]
    return "\n".join(lines)


def added(results: Results, value: float, label: str, connections: str | int) -> float:
    """What is left of a time without the provider's own."""
    return value - float(results["direct"][label][str(connections)])


def markdown(results: Results) -> Iterator[str]:
    """The table of docs/operations/performance.md."""
    titles = ["", "CPU µs a call", "to bare", "CPU µs a chunk", "to bare", "p50 added, ms", "p99 added, ms"]
    titles += ["first chunk, ms", "calls/s"]
    yield f"| {' | '.join(titles)} |"
    yield f"|{' --- |' * len(titles)}"
    for name, one in results.items():
        cells = [name]
        for figure in COLUMNS.values():
            values, against = one["cpu"].get(figure), ratio(results, name, figure)
            cells += ["-" if values is None else f"{median(values):,.0f}", "-" if against is None else f"{against:.2f}"]
        for label in ("p50", "p99"):
            cells.append("-" if name == "direct" else f"{added(results, one[label]['1'], label, 1):.2f}")
        cells += [f"{one['first_chunk']:.2f}", f"{one['rate']:,.0f}"]
        yield f"| {' | '.join(cells)} |"
