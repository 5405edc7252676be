"""Ask a large ledger: how long figures, pages, roll-ups and pruning take, and what writers feel of it.

    python tests/benchmarks/stats.py [--rows N] [--database URL] [--json FILE]

Without a URL it is an SQLite file in a temporary folder; a URL must be of an empty database, and its tables are dropped
at the end. Milliseconds are the median of five and the first, for which nothing was remembered; `cpu` those of this
process, which SQLite works in. Figures are those of GET /v1/stats: the groups, and everything.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from arbstr_asgi.database.database import migrate
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.stats.planner import HOUR
from arbstr_asgi.stats.query import GROUPS, Filters, RequestsQuery, StatsQuery
from arbstr_asgi.stats.rollups import scheduler
from arbstr_asgi.stats.timezones import period_number
from tests.support import ledger_generator
from tests.support.databases import an_entry, run_sql

TIMES = 5
PAIRS = [("model", "provider"), ("model", "tenant"), ("provider", "policy"), ("model", "day"), ("tenant", "hour")]
USERS = ("user-0001@example.com", "user-1500@example.com")  # one of the busiest, and one of the others


class Report:
    """What was measured, told at once."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def tell(self, name: str, **facts: Any) -> None:
        """One line."""
        self.found[name] = facts
        print(f"{name:52}" + "  ".join(f"{key} {value}" for key, value in facts.items()), flush=True)

    async def measure(self, name: str, ask: Callable[[], Awaitable[Any]]) -> None:
        """How long a question takes."""
        took, cpu = [], []
        for _ in range(TIMES):
            begun, worked = time.perf_counter(), time.process_time()
            await ask()
            took.append((time.perf_counter() - begun) * 1000)
            cpu.append((time.process_time() - worked) * 1000)
        median = statistics.median
        self.tell(name, ms=round(median(took), 1), first=round(took[0], 1), cpu=round(median(cpu), 1))


async def commits(ledger: Ledger, stop: asyncio.Event) -> list[float]:
    """A row every 20 ms: how many milliseconds each took until it was committed."""
    took = []
    while not stop.is_set():
        begun = time.perf_counter()
        ledger.record(an_entry(latency_ms=5, end_user="writer", revision=1, end_reason="completed", success=True))
        await ledger.flush()
        took.append((time.perf_counter() - begun) * 1000)
        await asyncio.sleep(0.02)
    return sorted(took)


async def beside(report: Report, name: str, ledger: Ledger, work: Awaitable[Any]) -> Any:
    """Do something while somebody writes, and tell what both took."""
    stop = asyncio.Event()
    writer = asyncio.create_task(commits(ledger, stop))
    begun = time.monotonic()
    result = await work
    seconds = time.monotonic() - begun
    stop.set()
    took = await writer
    at = {f"p{p}": round(took[min(len(took) * p // 100, len(took) - 1)], 1) for p in (50, 99)}
    report.tell(name, seconds=round(seconds, 1), commits=len(took), **at, longest=round(took[-1], 1))
    return result


async def ask_figures(report: Report, ledger: Ledger, until: datetime) -> None:
    """The last seven days in every way."""
    since = until - timedelta(days=7)

    def asking(**rest: Any) -> Callable[[], Awaitable[Any]]:
        return lambda: ledger.summary(StatsQuery(since=since, until=until, **rest))

    await report.measure("7 days", asking())
    for group in GROUPS:
        await report.measure(f"7 days by {group}", asking(group_by=(group,)))
    for pair in PAIRS:
        await report.measure(f"7 days by {' and '.join(pair)}", asking(group_by=pair))
    await report.measure("7 days by day in Asia/Kolkata", asking(group_by=("day",), zone="Asia/Kolkata"))
    await report.measure(
        "7 days of a model by provider", asking(group_by=("provider",), filters=Filters(model="gpt-large"))
    )
    for user in USERS:
        await report.measure(f"7 days of {user}", asking(filters=Filters(end_user=user)))
        live = Filters(end_user=user)
        await report.measure(f"7 days of {user} by model (rows)", asking(group_by=("model",), filters=live))
    everything = StatsQuery(since=until - timedelta(days=40), until=until, group_by=("model",))
    await report.measure("28 days by model", lambda: ledger.summary(everything))
    await ledger._maintenance()._roll_up_hour(period_number(until, HOUR) - 2, attempts=1, rebuild=True)
    for groups in (("end_user",), ("model", "tenant")):
        await report.measure(f"with another hour: by {' and '.join(groups)}", asking(group_by=groups))
    await report.measure("the models", lambda: ledger.distinct("model"))


async def ask_pages(report: Report, ledger: Ledger, until: datetime) -> None:
    """The first page and a deep one, in each order."""
    since = until - timedelta(days=7)
    for sort in ("timestamp", "latency_ms", "cost_sats"):
        for offset in (0, 10_000):
            query = RequestsQuery(since=since, until=until, sort=sort, offset=offset)
            await report.measure(f"page at {offset} by {sort}", lambda query=query: ledger.requests(query))
        for user in USERS:
            of_user = RequestsQuery(since=since, until=until, sort=sort, filters=Filters(end_user=user))
            await report.measure(f"page of {user} by {sort}", lambda query=of_user: ledger.requests(query))
    hour = RequestsQuery(since=until - timedelta(hours=1), until=until, sort="latency_ms", offset=10_000)
    await report.measure("page at 10000 of an hour by latency_ms", lambda: ledger.requests(hour))


async def measured(url: str, report: Report, rows: int) -> None:
    """All of it."""
    scheduler.START_DELAY = 10**9  # nobody rolls up but us
    ledger = Ledger(url)
    await ledger.open()
    until = datetime.now(UTC)
    alone = beside(report, "writing alone", ledger, asyncio.sleep(5))
    await alone
    await beside(report, "rolling everything up", ledger, ledger._maintenance().roll_up())
    await ask_figures(report, ledger, until)
    await ask_pages(report, ledger, until)
    figures = StatsQuery(since=until - timedelta(days=7), until=until, group_by=("model", "tenant"))

    async def figures_again() -> None:
        for _ in range(20):
            await ledger.stats(figures)

    await beside(report, "20 times 7 days by model and tenant", ledger, figures_again())
    begun = time.monotonic()
    exported = 0
    async for _ in ledger.export(RequestsQuery(since=until - timedelta(hours=20), until=until)):
        exported += 1
        if exported == 100_000:
            break
    report.tell("export", rows_per_second=round(exported / (time.monotonic() - begun)))
    pruned = await beside(report, "pruning a day", ledger, ledger.prune(until - timedelta(days=27), None))
    report.found["pruning a day"]["rows"] = pruned
    report.tell("size", rows=rows, pruned=pruned)
    await ledger.close()


def main() -> None:
    """Make the rows, measure, and leave nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--database", help="the URL of an empty database")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--folder", type=Path, help="for the SQLite file, instead of the system's temporary folder")
    given = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        url = given.database or f"sqlite+aiosqlite:///{folder}/ledger.db"
        asyncio.run(migrate(url))
        try:
            report.tell("inserting", rows=given.rows, seconds=round(ledger_generator.fill(url, given.rows), 1))
            asyncio.run(measured(url, report, given.rows))
        finally:
            if given.database:
                tables = ("requests", "attempts", "rollups", "dirty_hours", "arbstr_version")
                run_sql(url, *(f"DROP TABLE {table}" for table in tables))
    if given.json:
        given.json.write_text(json.dumps(report.found, indent=1), "utf-8")


if __name__ == "__main__":
    main()
