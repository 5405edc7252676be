"""The benchmarks run, and count their rows."""

import asyncio
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import ledger_generator

from arbstr_asgi.ledger import Ledger, migrate
from arbstr_asgi.stats import StatsQuery

BENCHMARK = Path(__file__).parent / "benchmarks" / "relay.py"


def test_smallest_round(tmp_path: Path) -> None:
    """One small round finds a row for each call and prints bare, ours and their ratio."""
    file = tmp_path / "found.json"
    command = [sys.executable, str(BENCHMARK), "--rounds", "1", "--calls", "8", "--streams", "1"]
    done = subprocess.run(
        [*command, "--server", "uvicorn", "--json", str(file)], capture_output=True, timeout=90, check=False
    )
    said = done.stdout.decode()
    assert done.returncode == 0, said + done.stderr.decode()
    found = json.loads(file.read_text("utf-8"))
    (server,) = found["servers"].values()
    assert server["rows_found"] == server["rows_expected"] == 20 + 1 + 8 + 32 + 1 + 32
    assert {"CPU µs per plain call, 1 connection", "CPU µs per chunk, 32 connections"} <= server["cost"].keys()
    for name, each in server["cost"].items():
        assert name in said
        assert each.keys() == {"bare", "ours"}
    assert f"rows expected {server['rows_expected']}, rows found {server['rows_found']}" in said
    assert all(name in said and each > 0 for name, each in found["pieces"].items())


def test_generated_rows_are_rows(database_url: str) -> None:
    """What is put past the ledger, without some of its indexes, is what the ledger then reads, and they are back."""
    until = datetime(2026, 2, 1, tzinfo=UTC)

    async def main() -> None:
        ledger = Ledger(database_url)
        await ledger.open()
        query = StatsQuery(since=until - timedelta(days=30), until=until, group_by=("model",))
        groups = await ledger.stats(query)
        assert sum(group.figures.total for group in groups) == 700
        assert {group.keys[0] for group in groups} == set(ledger_generator.MODELS)
        await ledger.close()

    asyncio.run(migrate(database_url))
    ledger_generator.fill(database_url, 700, until)
    asyncio.run(main())
