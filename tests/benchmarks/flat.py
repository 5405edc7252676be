"""Whether a call costs the same with a large ledger, and a chunk among many streams.

    python tests/benchmarks/flat.py

On uvicorn with SQLite: CPU µs of a plain call at 32 connections with a thousand and with a million rows in the ledger,
and of a chunk with 1, 32 and 1,000 streams at once, ours against the bare relay; medians of the rounds, in turns.
"""

import argparse
import asyncio
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from pathlib import Path
from statistics import median

import uvloop
from harness.client import PLAIN_REQUEST, clients, cpu, stream_request
from harness.processes import process, ready
from harness.provider import CHUNKS

ROWS = (1_000, 1_000_000)
STREAMS = (1, 32, 1000)
PACES = {1: 0.001, 32: 0.012, 1000: 0.1}  # seconds between the chunks of a stream, so that no server is saturated

# More rows like those that are there, each of a call and of a minute of its own.
MORE = """
WITH RECURSIVE counted (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counted WHERE n < {rows})
INSERT INTO requests ({columns}) SELECT {values} FROM counted JOIN (SELECT * FROM requests LIMIT 1)
"""


def fill(database: Path, rows: int) -> None:
    """Bring a ledger that has a row to about so many, all long ago."""
    with closing(sqlite3.connect(database)) as connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(requests)") if row[1] != "id"]
        own = {
            "correlation_id": "printf('%036d', n)",
            "timestamp": "strftime('%Y-%m-%dT%H:%M:%fZ', '2020-01-01', '+' || n || ' seconds')",
        }
        sql = MORE.format(rows=rows, columns=", ".join(names), values=", ".join(own.get(name, name) for name in names))
        connection.execute(sql)
        connection.commit()


async def each(port: int, asked: bytes, connections: int, calls: int, parts: int) -> float:
    """CPU µs of a call, or of one of its parts."""
    async with clients(port, connections) as client:
        before = await cpu(port)
        await client.drive(asked, calls)
        return (await cpu(port) - before) / (connections * calls * parts) * 1e6


async def rounds(number: int, measures: dict[str, Callable[[], Awaitable[float]]]) -> None:
    """Measure all in turns, and print the medians."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(number):
        for name, measure in measures.items():
            found[name].append(await measure())
    for name, values in found.items():
        print(f"{name:60}{median(values):10.1f}", flush=True)


async def measure(number: int) -> None:
    """Everything."""
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            provider = await stack.enter_async_context(process("provider", "0"))

            async def server(kind: str, database: Path) -> int:
                arguments = ("server", kind, "uvicorn", f"http://127.0.0.1:{provider}/v1", f"sqlite:///{database}")
                port = await stack.enter_async_context(process(*arguments))
                await ready(port)
                async with clients(port, 1) as client:
                    await client.drive(PLAIN_REQUEST, 30)
                return port

            ports: dict[int, int] = {}
            for rows in ROWS:
                database = Path(folder) / f"{rows}.db"
                ports[rows] = await server("ours", database)
                await cpu(ports[rows])
                began = time.monotonic()
                fill(database, rows)
                print(f"{rows:,} rows in {time.monotonic() - began:.0f} s", file=sys.stderr)
            bare = await server("bare", Path(folder) / "none")
            plain = {
                f"a plain call, {rows:,} rows": lambda port=port: each(port, PLAIN_REQUEST, 32, 25, 1)
                for rows, port in ports.items()
            }
            await rounds(number, {**plain, "a plain call, bare relay": lambda: each(bare, PLAIN_REQUEST, 32, 25, 1)})
            chunk = {
                f"a chunk, {streams} streams at once, {name}": lambda port=port, streams=streams: each(
                    port, stream_request(PACES[streams]), streams, 4 if streams == 1 else 1, CHUNKS
                )
                for streams in STREAMS
                for name, port in (("ours", ports[ROWS[0]]), ("bare relay", bare))
            }
            await rounds(max(1, number // 2), chunk)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(given.rounds))


if __name__ == "__main__":
    main()
