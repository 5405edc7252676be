"""What `durability = "strict"` costs: the time of a call with it and without, at 1 and at 64 clients.

    python tests/benchmarks/strict.py

The processes are those of relay.py, on uvicorn with an SQLite ledger; the two servers take turns, and each call's row
is looked for at the end (exit status 1 when one is missing). Absolute times are this machine's and this disk's.
"""

import argparse
import asyncio
import sqlite3
import sys
import tempfile
import time
from contextlib import AsyncExitStack, closing
from pathlib import Path

import uvloop
from harness.client import PLAIN_REQUEST, clients, cpu, quantile, stream_request
from harness.processes import process, ready

KINDS = ("ours", "strict")
CLIENTS = (1, 64)
REQUESTS = {"plain call": PLAIN_REQUEST, "stream of 100 chunks": stream_request(0.001)}


async def measure(rounds: int, calls: int) -> int:
    """Print the table; returns how many rows are missing."""
    took: dict[tuple[str, str, int], list[float]] = {}
    rates: dict[tuple[str, str, int], list[float]] = {}
    made = dict.fromkeys(KINDS, 0)
    with tempfile.TemporaryDirectory() as folder:
        async with AsyncExitStack() as stack:
            provider = await stack.enter_async_context(process("provider", "0"))
            upstream = f"http://127.0.0.1:{provider}/v1"
            ports = {}
            for kind in KINDS:
                arguments = ("server", kind, "uvicorn", upstream, f"sqlite:///{folder}/{kind}.db")
                ports[kind] = await stack.enter_async_context(process(*arguments))
                await ready(ports[kind])
                async with clients(ports[kind], 1) as warming:
                    await warming.drive(PLAIN_REQUEST, 50)
                made[kind] += warming.made
            for number in range(rounds):
                for what, asked in REQUESTS.items():
                    for many in CLIENTS:
                        each = max(1, calls // many if what == "plain call" else calls // 100)
                        for kind in KINDS if number % 2 else reversed(KINDS):
                            async with clients(ports[kind], many) as those:
                                began = time.perf_counter()
                                one = await those.drive(asked, each)
                                seconds = time.perf_counter() - began
                            made[kind] += those.made
                            took.setdefault((what, kind, many), []).extend(call.whole for call in one)
                            rates.setdefault((what, kind, many), []).append(len(one) / seconds)
            for kind in KINDS:
                await cpu(ports[kind])  # which waits for the rows
        missing = sum(made[kind] - rows(Path(folder) / f"{kind}.db") for kind in KINDS)
    print(f"{'ms':40}{'p50':>10}{'p99':>10}{'calls/s':>10}")
    for (what, kind, many), values in sorted(took.items()):
        best = sorted(rates[what, kind, many])[rounds // 2]
        name = f"{what}, {many} clients, {'strict' if kind == 'strict' else 'relaxed'}"
        print(f"{name:40}{quantile(values, 0.5) * 1e3:10.2f}{quantile(values, 0.99) * 1e3:10.2f}{best:10.0f}")
    print(f"rows missing: {missing} of {sum(made.values())}")
    return missing


def rows(database: Path) -> int:
    """How many finished rows there are."""
    with closing(sqlite3.connect(database)) as connection:
        return int(connection.execute("SELECT count(*) FROM requests WHERE end_reason = 'completed'").fetchone()[0])


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--calls", type=int, default=640, help="plain calls a round")
    given = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return int(runner.run(measure(given.rounds, given.calls)) > 0)


if __name__ == "__main__":
    sys.exit(main())
