"""With strict durability, what a client has of a reply while its row is not yet durable."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from arbstr_asgi.database.records import LedgerEntry
from arbstr_asgi.gateway.strict import StrictHold
from arbstr_asgi.protocols.reply import ReplySummary
from tests.support.asgi_client import PLAIN_REQUEST, STREAM_REQUEST, Call, Message, Provided, rows
from tests.support.asgi_client import configured as in_process
from tests.support.asgi_client import running as in_lifespan
from tests.support.fake_provider import Provider, chunk, hello, plain, provider, stream
from tests.support.raw_http_client import Wire
from tests.support.servers import Gateway, Row, gateway, no_task_left

A_WHILE = 0.1  # seconds in which nothing more may come
SECONDS = 20.0
HELLO, STREAM, PLAIN = hello().decode(), stream().decode(), plain().decode()
FINISHED = chunk(None, "stop").decode()
DONE = "data: [DONE]\n\n"
SSE = "text/event-stream"
JSON = "application/json"


@dataclass
class Case:
    """What the provider says, and how much of it the client has at the gate."""

    name: str
    chunks: list[str]
    before: str
    type: str = SSE
    length: bool = False
    status: int = 200
    stream: bool = True
    asked: bool = True  # the client asks for usage itself, so that every byte passes
    facts: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    @property
    def request(self) -> dict[str, Any]:
        """The request that makes the provider say it."""
        say = {"chunks": self.chunks, "type": self.type, "length": self.length, "status": self.status}
        options = {"stream_options": {"include_usage": False}} if self.asked and self.stream else {}
        return {"model": "says", "say": say, "stream": self.stream, **options}

    @property
    def whole(self) -> bytes:
        """The whole body."""
        return "".join(self.chunks).encode()


def crlf(text: str) -> str:
    """With the other line end."""
    return text.replace("\n", "\r\n")


BEFORE = HELLO + FINISHED
CASES = [
    Case("done alone", [HELLO, FINISHED, DONE], BEFORE),
    Case("done alone, injected", [HELLO, FINISHED, DONE], BEFORE, asked=False),
    Case("done glued", [HELLO, FINISHED + DONE], BEFORE),
    Case("done glued, injected", [HELLO, FINISHED + DONE], BEFORE, asked=False),
    Case("all glued", [BEFORE + DONE], BEFORE),
    Case("more behind", [BEFORE + DONE + ": bye\n\n", ": again\n\n"], BEFORE),
    Case("crlf", [crlf(HELLO), crlf(FINISHED + DONE)], crlf(BEFORE)),
    Case("crlf, injected", [crlf(HELLO), crlf(FINISHED + DONE)], crlf(BEFORE), asked=False),
    Case("cut behind the word", [BEFORE + "data: [DONE]", "\n\n"], BEFORE),
    Case("cut in the word", [BEFORE + "data: [DO", "NE]", "\n\n"], BEFORE + "data: [DO"),
    Case("done without a blank line", [BEFORE + "data: [DONE]"], BEFORE),
    Case("no done", [HELLO, FINISHED], BEFORE),
    Case("no done, with a length", [HELLO, FINISHED], HELLO, length=True),
    Case("done, with a length", [HELLO, FINISHED + DONE], BEFORE, length=True),
    Case("not called a stream", [HELLO, FINISHED + DONE], BEFORE, type="text/plain"),
    Case("plain with a length", [PLAIN[:50], PLAIN[50:]], PLAIN[:50], type=JSON, length=True, stream=False),
    Case("plain in one chunk", [PLAIN], "", type=JSON, length=True, stream=False),
    Case("plain chunked", [PLAIN[:50], PLAIN[50:90], PLAIN[90:]], PLAIN[:90], type=JSON, stream=False),
    Case("plain, headers in full", [PLAIN], "", type=JSON, stream=False, facts={"response_headers": "full"}),
    Case("an error", ['{"error":', "{}}"], '{"error":', type=JSON, length=True, status=429),
    Case("an empty error", [], "", type=JSON, length=True, status=500),
]


class Gate:
    """A `commit` that waits until it is opened."""

    def __init__(self) -> None:
        self.entries: list[LedgerEntry] = []
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, entry: LedgerEntry) -> None:
        """Keep the entry, and wait."""
        self.entries.append(entry)
        self.record(entry)
        self.reached.set()
        await self.opened.wait()

    def record(self, entry: LedgerEntry) -> None:
        """What the ledger is told."""
        raise NotImplementedError


@asynccontextmanager
async def gated(folder: Path, *arguments: Any, **facts: Any) -> AsyncIterator[tuple[Gateway, Gate, Provider]]:
    """A gateway whose rows are durable once the gate is open."""
    gate = Gate()
    async with provider() as upstream, gateway(folder, upstream.url, *arguments, **facts) as running:
        await running.until_drains(0)  # it is up
        inner = running.arbstr._gateway
        assert inner._deps is not None
        gate.record = inner.ledger.record  # type: ignore[method-assign]
        inner._deps = msgspec.structs.replace(inner._deps, commit=gate)
        async with asyncio.timeout(SECONDS):
            yield running, gate, upstream


async def corrected(running: Gateway) -> Row:
    """The row, once it has been corrected."""
    for _ in range(1000):
        row = await running.row()
        if row["revision"] > 1:
            return row
        await asyncio.sleep(0.01)
    raise AssertionError("never corrected")


async def all_that_comes(wire: Wire, expected: str | bytes) -> None:
    """Read as much of the body as is expected, and what more there is within a while."""
    while wire.clean is None and len(wire.body) < len(expected):
        await wire._step()
    with suppress(TimeoutError):
        async with asyncio.timeout(A_WHILE):
            while wire.clean is None:
                await wire._step()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_held(case: Case, tmp_path: Path) -> None:
    """The client has not the whole while its row is not durable, and has it afterwards, byte for byte."""

    async def main() -> Row:
        async with gated(tmp_path, **case.facts) as (running, gate, _):
            wire = await Wire.open(running.url, case.request)
            await gate.reached.wait()
            await all_that_comes(wire, case.before)
            assert (wire.body, wire.clean) == (case.before.encode(), None)
            if not case.before and not case.chunks:
                assert wire.status == 0
            gate.opened.set()
            await wire.until()
            assert (wire.status, wire.body, wire.clean) == (case.status, case.whole, True)
            row = await running.row()
            assert len(gate.entries) == 1
            assert (gate.entries[0].end_reason, gate.entries[0].error_status) == (
                row["end_reason"],
                row["error_status"],
            )
            return row

    row = asyncio.run(main())
    assert (row["revision"], row["end_reason"]) == (1, "completed")
    assert row["error_status"] == (case.status if case.status >= 300 else None)


@pytest.mark.parametrize(
    ("model", "status", "body"),
    [("closes_before_headers", 502, b""), ("resets_mid_chunk", 200, hello() * 2)],
    ids=["error", "error event"],
)
def test_own_errors(model: str, status: int, body: bytes, tmp_path: Path) -> None:
    """Errors of ours come after their row as well."""

    async def main() -> Row:
        async with gated(tmp_path) as (running, gate, _):
            wire = await Wire.open(running.url, {"model": model, "stream": True})
            await gate.reached.wait()
            await all_that_comes(wire, body)
            assert (wire.body, wire.clean) == (body, None)
            gate.opened.set()
            await wire.until()
            assert (wire.status, wire.clean) == (status, True)
            assert b"upstream_disconnected" in wire.body
            return await running.row()

    row = asyncio.run(main())
    assert (row["revision"], row["end_reason"]) == (1, "upstream_error")


LEAVING = [case for case in CASES if case.name in ("done glued", "no done", "plain with a length", "an empty error")]


@pytest.mark.parametrize("case", LEAVING, ids=str)
def test_left_while_held(case: Case, tmp_path: Path) -> None:
    """Who leaves while the end is held ends the call at once, and a correction of the row says so."""

    async def main() -> Row:
        async with gated(tmp_path) as (running, gate, _):
            wire = await Wire.open(running.url, case.request)
            await gate.reached.wait()
            await all_that_comes(wire, case.before)
            wire.hang_up()
            row = await corrected(running)
            assert not gate.opened.is_set()
        await no_task_left()
        return row

    row = asyncio.run(main())
    assert (row["end_reason"], row["disconnect"]) == ("client_disconnected", "drained")


def test_error_left_while_held(tmp_path: Path) -> None:
    """Who leaves before an error of ours is sent ends the call at once as well."""

    async def main() -> Row:
        async with gated(tmp_path) as (running, gate, _):
            wire = await Wire.open(running.url, {"model": "closes_before_headers"})
            await gate.reached.wait()
            wire.hang_up()
            return await corrected(running)

    row = asyncio.run(main())
    assert (row["end_reason"], row["error_status"]) == ("client_disconnected", None)


def test_no_deadline_while_held(tmp_path: Path) -> None:
    """The provider's time-outs do not run while we wait for the row, nor does the end of the server cut it short."""

    before = STREAM.removesuffix(DONE).encode()

    async def main() -> Row:
        async with gated(tmp_path, {"idle_timeout": 0.5}) as (running, gate, _):
            wire = await Wire.open(running.url, {"model": "done_and_open", "stream": True})
            await gate.reached.wait()
            await asyncio.sleep(0.8)
            running.arbstr.wind_down(0.0)
            await all_that_comes(wire, before)
            assert wire.body == before
            gate.opened.set()
            await wire.until()
            assert (wire.body, wire.clean) == (STREAM.encode(), True)
            return await running.row()

    row = asyncio.run(main())
    assert (row["end_reason"], row["revision"]) == ("completed", 1)


def test_any_cut() -> None:
    """Wherever a stream is cut, nothing is lost, and the line of [DONE] is never out before it may."""
    text = (HELLO + 'data: {"x":"[DONE]"}\n\n' + FINISHED + DONE).encode()
    for cut in range(len(text)):
        for second in range(cut, len(text), 7):
            reading = ReplySummary()
            holding = StrictHold(has_length=False, is_events=True)
            out = b""
            for at, end in ((0, cut), (cut, second), (second, len(text))):
                reading.seen_done = end == len(text)
                out += holding.push(text[at:end], reading)
            assert DONE.encode()[:12] not in out
            assert out + holding.flush() == text


@pytest.mark.parametrize("body", [PLAIN_REQUEST, STREAM_REQUEST], ids=["plain", "stream"])
@pytest.mark.parametrize("how", ["cancelled", "send fails"])
def test_not_sent_after_all(body: bytes, how: str, tmp_path: Path) -> None:
    """A committed row is corrected where the server cancels the call first, or the last bytes can't be sent."""

    async def main() -> Row:
        gate = Gate()
        async with in_lifespan("middleware", in_process(tmp_path), Provided()) as app:
            inner = app._gateway
            gate.record = inner.ledger.record  # type: ignore[method-assign]
            inner._deps = msgspec.structs.replace(inner._deps, commit=gate)
            one = Call(app, body)

            async def send(message: Message) -> None:
                if gate.opened.is_set():
                    raise OSError("gone")
                await kept(message)

            kept, one.send = one.send, send  # type: ignore[method-assign]

            task = asyncio.create_task(one.run())
            await gate.reached.wait()
            if how == "cancelled":
                task.cancel()
            else:
                gate.opened.set()
            await asyncio.wait({task})
            [row] = await rows(app)
            assert b"[DONE]" not in one.body
            assert one.body != PLAIN.encode()
            return dict(row)

    row = asyncio.run(main())
    expected = ("shutdown", False) if how == "cancelled" else ("client_disconnected", True)
    assert (row["revision"], row["end_reason"], row["success"]) == (2, *expected)
