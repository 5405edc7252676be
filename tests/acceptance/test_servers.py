"""The server programs that people run, as processes: calls, hang-ups and the end, and what is on disk afterwards."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fake_provider import Provider, plain, provider, stream
from tests.support.raw_http_client import Wire, ask
from tests.support.servers import Row, Spawned, ledger_rows, no_task_left, spawned, until_drains, until_rows

STOP_SECONDS = 15.0  # the graces below are one second each


@dataclass(frozen=True)
class Kind:
    """A server, and how it ends with streams running: its exit status, and how their rows have ended.

    `last` is how the row of a stream may have ended that was complete before the process was gone.

    The statuses and ends are the servers' own (uvicorn raises the signal again; granian kills its workers, so that
    only the rows made at the first byte remain).
    """

    name: str
    program: str
    options: tuple[str, ...] = ()
    workers: int = 1
    status: int = 0
    end: str = "shutdown"
    last: tuple[str, ...] = ("completed",)

    def __str__(self) -> str:
        return self.name


ARBSTR = Kind("arbstr", "arbstr")
ARBSTR_3 = Kind("arbstr-3", "arbstr", workers=3)
# On asyncio from Python 3.12 on, hypercorn waits for running replies without limit.
LOOP = ("-k", "uvloop") if sys.version_info >= (3, 12) else ()
KINDS = (
    Kind("hypercorn", "hypercorn", ("--graceful-timeout", "1", *LOOP)),
    Kind("hypercorn-3", "hypercorn", ("--graceful-timeout", "1", *LOOP), workers=3),
    Kind("uvicorn", "uvicorn", ("--timeout-graceful-shutdown", "1"), status=-signal.SIGTERM),
    Kind("granian", "granian", ("--workers-kill-timeout", "1"), end="in_flight"),
    ARBSTR,
    ARBSTR_3,
)
UVICORN_2 = Kind("uvicorn-2", "uvicorn", ("--timeout-graceful-shutdown", "1"), workers=2)
LIFELESS = (
    # They end without a word as soon as the last call has: what was recorded in the 50 ms before may not be written.
    Kind(
        "uvicorn-off",
        "uvicorn",
        ("--lifespan", "off", "--timeout-graceful-shutdown", "1"),
        status=-signal.SIGTERM,
        last=("completed", "in_flight"),
    ),
    Kind("granian-asginl", "granian", ("--interface", "asginl"), last=("completed", "in_flight")),
)
GOOD: Row = {"success": 1, "input_tokens": 7, "output_tokens": 2, "usage_source": "provider", "revision": 1}


def asked(model: str, *, streaming: bool = True) -> dict[str, Any]:
    """A request."""
    return {"model": model, "stream": streaming, "messages": []}


def check(row: Row, expected: Row) -> None:
    """The row says this, among other things."""
    assert {name: row[name] for name in expected} == expected


@asynccontextmanager
async def running(folder: Path, kind: Kind) -> AsyncIterator[tuple[Provider, Spawned]]:
    """A provider, and this server in front of it."""
    async with (
        provider() as upstream,
        spawned(folder, kind.program, upstream.url, *kind.options, workers=kind.workers) as server,
    ):
        yield upstream, server


async def calls(upstream: Provider, server: Spawned, folder: Path) -> None:
    """A streaming and a plain call, and two clients that leave theirs: once before, once after the usage is there."""
    streamed = await ask(server.url, asked("good"))
    assert (streamed.status, streamed.clean, streamed.body) == (200, True, stream())
    whole = await ask(server.url, asked("good", streaming=False))
    assert (whole.status, whole.clean, whole.body) == (200, True, plain())
    left = await Wire.open(server.url, asked("gated"))
    await left.until(1)
    left.hang_up()
    await until_drains(server.url, 1)
    early = await Wire.open(server.url, asked("silent"))
    line = await upstream.line(3)
    early.hang_up()
    async with asyncio.timeout(5):
        await line.closed.wait()
    assert not upstream.lines[2].closed.is_set()
    upstream.gate.set()
    rows = await until_rows(folder, "completed", "completed", "client_disconnected", "client_disconnected")
    by_call = {row["correlation_id"]: row for row in rows}
    for wire, streaming in ((streamed, 1), (whole, 0)):
        check(by_call[wire.headers["x-arbstr-request-id"]], {**GOOD, "streaming": streaming, "end_reason": "completed"})
    check(by_call[left.headers["x-arbstr-request-id"]], {**GOOD, "end_reason": "client_disconnected"})
    check(by_call[line.headers["idempotency-key"]], {"success": 0, "usage_source": "none", "latency_ms": None})
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{server.url}/readyz")).json()["status"] == "ok"


@pytest.mark.parametrize("kind", KINDS + LIFELESS, ids=str)
def test_calls_and_end(kind: Kind, tmp_path: Path) -> None:
    """Calls and hang-ups have their rows, with a lifespan and without; at SIGTERM a last stream ends well, then all."""

    async def main() -> Wire:
        async with running(tmp_path, kind) as (upstream, server):
            await calls(upstream, server, tmp_path)
            upstream.gate.clear()
            last = await Wire.open(server.url, asked("gated"))
            await last.until(1)
            server.process.send_signal(signal.SIGTERM)
            for _ in range(30):  # the signal is on its way, and some servers say nothing of it
                await asyncio.sleep(0.01)
            upstream.gate.set()
            await last.until()
            assert await server.ended(STOP_SECONDS) == kind.status
            for word in ("CRITICAL", "Unclosed", "was never awaited"):
                assert word not in server.said()
        await no_task_left()
        return last

    last = asyncio.run(main())
    assert (last.clean, last.body) == (True, stream())
    rows = ledger_rows(tmp_path)
    assert len(rows) == 5
    assert rows[-1]["correlation_id"] == last.headers["x-arbstr-request-id"]
    assert rows[-1]["end_reason"] in kind.last
    if rows[-1]["end_reason"] == "completed":
        check(rows[-1], GOOD)


@pytest.mark.parametrize("kind", [*KINDS, UVICORN_2], ids=str)
def test_sigterm_with_streams(kind: Kind, tmp_path: Path) -> None:
    """SIGTERM with a busy and a silent stream: the process exits as it should, and neither row is missing."""

    async def main() -> tuple[list[Wire], int, float]:
        async with running(tmp_path, kind) as (_, server):
            wires = [await Wire.open(server.url, asked(model)) for model in ("endless", "stalls")]
            for wire in wires:
                await wire.until(1)
            await until_rows(tmp_path, "in_flight", "in_flight")
            begun = time.monotonic()
            status = await server.terminate(STOP_SECONDS)
            seconds = time.monotonic() - begun
            for wire in wires:
                await wire.until()
        return wires, status, seconds

    wires, status, seconds = asyncio.run(main())
    assert status == kind.status
    assert seconds > 0.8  # the streams had their grace
    assert not any(b"[DONE]" in wire.body for wire in wires)
    if kind in (ARBSTR, ARBSTR_3):
        assert all(wire.clean and b'"code": "shutdown"' in wire.body for wire in wires)
    rows = ledger_rows(tmp_path)
    assert [row["end_reason"] for row in rows] == [kind.end] * 2
    assert {row["correlation_id"] for row in rows} == {wire.headers["x-arbstr-request-id"] for wire in wires}
    for row in rows:
        check(row, {"success": 0, "usage_source": "none", "input_tokens": None, "cost_sats": None})


@pytest.mark.parametrize("kind", [ARBSTR, ARBSTR_3], ids=str)
def test_arbstr_serve_ends_drains_at_once(kind: Kind, tmp_path: Path) -> None:
    """`arbstr serve` doesn't give its grace to streams that nobody hears any more."""

    async def main() -> float:
        async with (
            provider() as upstream,
            spawned(tmp_path, "arbstr", upstream.url, workers=kind.workers, grace=8.0) as server,
        ):
            wire = await Wire.open(server.url, asked("endless"))
            await wire.until(1)
            wire.hang_up()
            await until_drains(server.url, 1)
            begun = time.monotonic()
            assert await server.terminate(STOP_SECONDS) == 0
            return time.monotonic() - begun

    seconds = asyncio.run(main())
    (row,) = ledger_rows(tmp_path)
    assert row["end_reason"] == "client_disconnected"
    assert seconds < 5


def test_sigkill_leaves_the_row_of_the_first_byte(tmp_path: Path) -> None:
    """Of a call whose process was killed, the row that was made when the provider answered remains."""

    async def main() -> Wire:
        async with running(tmp_path, ARBSTR) as (_, server):
            wire = await Wire.open(server.url, asked("endless"))
            await wire.until(1)
            await until_rows(tmp_path, "in_flight")
            server.process.kill()
            await server.ended(STOP_SECONDS)
            return await wire.until()

    wire = asyncio.run(main())
    assert wire.clean is False
    (row,) = ledger_rows(tmp_path)
    check(row, {"end_reason": "in_flight", "success": 0, "usage_source": "none", "revision": 0})
    assert row["correlation_id"] == wire.headers["x-arbstr-request-id"]
    assert row["latency_ms"] is not None


def test_a_plain_reply_that_breaks_off_costs_a_line(tmp_path: Path) -> None:
    """What has begun and can't be finished is aborted for the client, and the log has a line for it, no traceback."""

    async def main() -> tuple[Wire, str]:
        async with provider() as upstream, spawned(tmp_path, "arbstr", upstream.url) as server:
            wire = await ask(server.url, asked("closes_chunked", streaming=False))
            await server.terminate(STOP_SECONDS)
            return wire, server.said()

    wire, said = asyncio.run(main())
    assert (wire.status, wire.clean) == (200, False)
    assert said.count("WARNING hypercorn.error: a reply was broken off: upstream_error: upstream_disconnected") == 1
    assert "Traceback" not in said


def test_sigint(tmp_path: Path) -> None:
    """Ctrl-C ends `arbstr serve` as well as SIGTERM does."""

    async def main() -> None:
        async with running(tmp_path, ARBSTR) as (_, server):
            await ask(server.url, asked("good"))
            server.process.send_signal(signal.SIGINT)
            assert await server.ended(STOP_SECONDS) == 0
            assert "Traceback" not in server.said()

    asyncio.run(main())
    check(ledger_rows(tmp_path)[0], {**GOOD, "end_reason": "completed"})


def test_three_workers_share_the_work(tmp_path: Path) -> None:
    """Sixty calls to three workers have sixty rows, by more than one process, in one file."""

    async def main() -> None:
        async with running(tmp_path, ARBSTR_3) as (_, server):
            await server.until_said("Running on", 3)
            replies = await asyncio.gather(*(ask(server.url, asked("slow")) for _ in range(60)))
            assert all(reply.clean and b"[DONE]" in reply.body for reply in replies)
            assert await server.terminate(STOP_SECONDS) == 0

    asyncio.run(main())
    rows = ledger_rows(tmp_path)
    assert len(rows) == len({row["correlation_id"] for row in rows}) == 60
    assert {row["end_reason"] for row in rows} == {"completed"}
    assert 1 < len({row["worker_id"] for row in rows}) <= 3


@pytest.mark.parametrize("kind", [*KINDS[:1], ARBSTR], ids=str)
def test_wrong_ledger_fails_the_start(kind: Kind, tmp_path: Path) -> None:
    """A ledger that can't be opened as configured fails the start: the server exits by itself, and says why."""
    (tmp_path / "ledger.db").mkdir()

    async def main() -> str:
        with pytest.raises(AssertionError) as failure:  # `until_up` has seen that it has ended
            async with running(tmp_path, kind):
                pass
        return str(failure.value)

    assert "can't open the ledger" in asyncio.run(main())
