"""What writing costs: CPU of this process for a row of full width that tells its one attempt, recorded and committed.

    python tests/benchmarks/writer.py [--database URL]... [--rows N] [--json FILE]

Without a URL it is an SQLite file in a temporary folder; a URL must be of an empty database, and its tables are dropped
at the end. `batches` records 500 rows and waits for their commit, again and again: the median of the batches, in CPU of
all threads (a server's own work is not among it). `saturation` records as fast as it can, past what the database takes,
and waits at the end only: what is spilled meanwhile comes back. Exit status 1 when a row is missing anywhere.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

import msgspec
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from arbstr_asgi.database.columns import COLUMNS, Column, Kind
from arbstr_asgi.database.records import LedgerEntry, derived_attempt
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.stats.rollups import scheduler
from tests.support.databases import dialect_of, run_sql

BATCH = 500
AT_ONCE = 100  # rows between two looks at the loop, when it records as fast as it can
BEGUN = datetime.now(UTC)
TABLES = ("requests", "attempts", "rollups", "dirty_hours", "arbstr_version")


def fact(column: Column, number: int) -> Any:
    """Something that fits."""
    match column.kind:
        case Kind.IDENTIFIER:
            return str(uuid4())
        case Kind.TIMESTAMP:
            return BEGUN + timedelta(milliseconds=number)
        case Kind.MONEY:
            return Decimal(number % 1000) + Decimal("0.123456789")
        case Kind.DOCUMENT:
            return '{"feature":"search","team":"catalogue","prompt_tokens":1200}'
        case Kind.TEXT | Kind.NAME:
            return f"{column.name}-{number % 997}"
        case Kind.REAL:
            return 0.25
    return number % 5000 if column.kind is Kind.INTEGER else True


def entry_of(number: int) -> LedgerEntry:
    """A finished call of which everything is known."""
    known = {column.name: fact(column, number) for column in COLUMNS}
    known.update(end_reason="completed", usage_source="provider", attempts=1, revision=1, error_status=502, sent_ms=0)
    entry = LedgerEntry(**known)
    attempt = derived_attempt(entry)
    assert attempt is not None
    return msgspec.structs.replace(entry, tries=(attempt,))


async def in_batches(ledger: Ledger, rows: int) -> dict[str, Any]:
    """One batch after the other."""
    took, waited = [], []
    for batch in range(rows // BATCH):
        entries = [entry_of(batch * BATCH + place) for place in range(BATCH)]
        begun, worked = time.perf_counter(), time.process_time()
        for entry in entries:
            ledger.record(entry)
        await ledger.flush()
        took.append((time.process_time() - worked) / BATCH * 1e6)
        waited.append((time.perf_counter() - begun) * 1e3)
    return {"cpu_us_a_row": round(median(took), 1), "ms_a_batch": round(median(waited), 1)}


async def saturated(ledger: Ledger, rows: int) -> dict[str, Any]:
    """All of it at once, the loop busy as a gateway's would be."""
    entries = [entry_of(number) for number in range(rows)]
    begun, worked = time.perf_counter(), time.process_time()
    for first in range(0, rows, AT_ONCE):
        for entry in entries[first : first + AT_ONCE]:
            ledger.record(entry)
        await asyncio.sleep(0)
    await ledger.flush()
    cpu, seconds = time.process_time() - worked, time.perf_counter() - begun
    return {"cpu_us_a_row": round(cpu / rows * 1e6, 1), "rows_per_second": round(rows / seconds)}


async def measured(url: str, rows: int) -> dict[str, Any]:
    """Both on one database."""
    scheduler.START_DELAY = 10**9  # nobody rolls up
    found: dict[str, Any] = {}
    ways: dict[str, Callable[[Ledger, int], Awaitable[dict[str, Any]]]] = {
        "batches": in_batches,
        "saturation": saturated,
    }
    expected = 0
    for name, way in ways.items():
        ledger = Ledger(url)
        await ledger.open()
        found[name] = await way(ledger, rows // BATCH * BATCH)
        expected += rows // BATCH * BATCH
        await ledger.close()
        found[name]["lost"] = ledger.lost
    found["expected"] = expected
    return found


def main() -> None:
    """Measure on each database, and leave nothing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--database", action="append", help="the URL of an empty database; can be given several times")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    given = parser.parse_args()
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for url in given.database or [f"sqlite+aiosqlite:///{folder}/ledger.db"]:
            try:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    found = runner.run(measured(url, given.rows))
                for table in ("requests", "all_attempts"):
                    ((found[table],),) = run_sql(url, f"SELECT count(*) FROM {table}")
            finally:
                run_sql(url, "DROP VIEW all_attempts", *(f"DROP TABLE {table}" for table in TABLES))
            report[dialect_of(url)] = found
            print(dialect_of(url), json.dumps(found), flush=True)
    if given.json:
        given.json.write_text(json.dumps(report, indent=1), "utf-8")
    sys.exit(any(not found["requests"] == found["all_attempts"] == found["expected"] for found in report.values()))


if __name__ == "__main__":
    main()
