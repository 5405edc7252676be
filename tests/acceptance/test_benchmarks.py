"""The benchmarks run, and count their rows."""

import asyncio
import importlib.util
import json
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi.database.database import migrate
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.stats.query import StatsQuery
from tests.support import ledger_generator

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "relay.py"


def run(*options: str) -> tuple[int, str, str]:
    """One small round; its exit status, and what it printed."""
    command = [sys.executable, str(BENCHMARK), "--rounds", "1", "--calls", "8", "--streams", "1", *options]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=90, check=False)
    return done.returncode, done.stdout, done.stderr


def guard() -> Any:
    """The benchmark's module of that name."""
    spec = importlib.util.spec_from_file_location("guard", BENCHMARK.with_name("harness") / "guard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_smallest_round(tmp_path: Path) -> None:
    """One small round measures ours on every database that is there, and finds a row for each call."""
    file = tmp_path / "found.json"
    status, said, complaint = run("--server", "uvicorn", "--json", str(file))
    assert status == 0, said + complaint
    found = json.loads(file.read_text("utf-8"))
    ours = {name: one for name, one in found["targets"].items() if ", ours" in name}
    assert {"uvicorn, ours, SQLite", "uvicorn, ours, SQLite, strict"} <= ours.keys()
    assert {"direct", "uvicorn, bare relay"} <= found["targets"].keys()
    for name, one in ours.items():
        assert name in said
        assert one["rows_found"] == one["rows_expected"] == 23 + 2 * (1 + 32) * 2 + 8 + 32 + 1 + 32
        assert all(used > 0 for (used,) in one["cpu"].values())
        assert one["base"] == "uvicorn, bare relay"
    assert len(found["ratios"]) == 2
    assert all(name in said and each > 0 for name, each in found["pieces"].items())


@pytest.mark.parametrize("server", ["hypercorn", "granian"])
def test_table_for_the_readme(server: str) -> None:
    """Other servers are measured alike, and the table in Markdown has a line for each."""
    status, said, complaint = run("--quick", "--server", server, "--readme")
    assert status == 0, complaint
    lines = said.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| direct",
        f"| {server}, bare relay",
        f"| {server}, ours, SQLite",
    ]
    assert len({line.count("|") for line in lines}) == 1


def test_a_gateway_that_is_not_there() -> None:
    """A gateway that does not answer is named, with its place."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    status, _, complaint = run("--quick", "--server", "uvicorn", "--gateway", f"theirs={port}")
    assert status == 1
    assert f"theirs at 127.0.0.1:{port} does not answer a chat completion" in complaint.splitlines()[-1]


def test_the_guard() -> None:
    """A ratio may be worse than its record by the margin, and no further; one that was not measured is missed."""
    one = guard()
    assert one.too_dear({"a": 2.0 * one.MARGIN}, {"a": 2.0}) == []
    assert one.too_dear({"a": 1.0, "b": 9.0}, {"a": 2.0}) == []
    (dear,) = one.too_dear({"a": 2.01 * one.MARGIN}, {"a": 2.0})
    assert dear.startswith("a: 2.51 times the bare relay, at most 2.50")
    assert one.too_dear({}, {"a": 2.0}) == ["a: not measured, 2.00 is on record"]
    assert all(ratio > 1 for ratio in one.recorded().values())
    assert len(one.recorded()) == 4


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
