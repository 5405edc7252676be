"""Promises to the host and its users that a small change of the code could break unnoticed: one test each."""

import asyncio
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from arbstr_asgi import Drain, Provider
from arbstr_asgi.database.records import LedgerEntry
from arbstr_asgi.ledger.ledger import Ledger
from arbstr_asgi.providers.client import HttpClient
from tests.support.asgi_client import (
    EVENTS,
    JSON_TYPE,
    SSE_TYPE,
    STREAM_REQUEST,
    STRIPPED,
    Call,
    Chunks,
    Provided,
    call,
    configured,
    running,
)
from tests.support.asgi_client import rows as rows_of

SOON = 2.0
SECRET = "the-secret-of-the-prompt"


def stalling() -> Provided:
    """A provider that says a word and then nothing more."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(EVENTS[0], asyncio.Event()))

    return Provided(answer)


async def hung_up(folder: Path, provider: dict[str, Any]) -> str:
    """How a call ends whose client leaves after the first word; the provider would never end it."""
    async with running("sub-app", configured(folder, provider), stalling()) as app:
        one = Call(app, STREAM_REQUEST)
        task = asyncio.create_task(one.run())
        await one.begun.wait()
        one.gone.set()
        async with asyncio.timeout(SOON):
            await task
        (row,) = await rows_of(app)
    return str(row["end_reason"])


def test_hang_up_is_noticed(tmp_path: Path) -> None:
    """With `cancel` a hang-up ends the call at once, although nothing is sent that could fail."""
    assert asyncio.run(hung_up(tmp_path, {"disconnect": "cancel"})) == "client_disconnected"


def test_drains_are_capped(tmp_path: Path) -> None:
    """With no place left to drain, the provider's stream is closed at once."""
    assert asyncio.run(hung_up(tmp_path, {"disconnect": Drain(at_once=0)})) == "client_disconnected"


def test_drain_time_is_capped(tmp_path: Path) -> None:
    """A drain ends at its time-out, whatever the provider does."""
    assert asyncio.run(hung_up(tmp_path, {"disconnect": Drain(drain=0.1)})) == "client_disconnected"


def test_cancelled_call_has_its_row(tmp_path: Path) -> None:
    """A call that the server cancels is finished in the ledger."""

    async def main() -> dict[str, Any]:
        async with running("sub-app", configured(tmp_path), stalling()) as app:
            one = Call(app, STREAM_REQUEST)
            task = asyncio.create_task(one.run())
            await one.begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            (row,) = await rows_of(app)
            return row

    row = asyncio.run(main())
    assert (row["end_reason"], row["revision"], row["response_model"]) == ("shutdown", 1, "m-1")


@pytest.mark.parametrize(("status", "seen"), [(400, 400), (401, 502), (402, 502), (403, 502), (429, 429)])
def test_provider_errors(status: int, seen: int, tmp_path: Path) -> None:
    """A provider's error reaches the client as it came, but never one about our key; its text is in no row."""
    body = b'{"error":{"message":"' + SECRET.encode() + b'","type":"some_error","code":"some_code"}}'

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(status, headers=JSON_TYPE, stream=Chunks(body))

    async def main() -> tuple[Call, dict[str, Any]]:
        async with running("sub-app", configured(tmp_path, {"api_key": "sk-ours"}), Provided(answer)) as app:
            done = await call(app, b'{"model":"m"}')
            (row,) = await rows_of(app)
            return done, row

    done, row = asyncio.run(main())
    assert done.status == seen
    assert (done.body == body) == (seen == status)
    assert (SECRET.encode() in done.body) == (seen == status)
    assert row["error_status"] == seen
    assert SECRET not in str(row)
    assert row["error_message"]


def streamed(folder: Path, *chunks: bytes) -> tuple[bytes, dict[str, Any]]:
    """What a client gets of an injected stream, and its row."""

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers=SSE_TYPE, stream=Chunks(*chunks))

    async def main() -> tuple[bytes, dict[str, Any]]:
        async with running("sub-app", configured(folder), Provided(answer)) as app:
            done = await call(app, STREAM_REQUEST)
            (row,) = await rows_of(app)
            return done.body, row

    return asyncio.run(main())


def test_last_usage_counts(tmp_path: Path) -> None:
    """Of the usage that a cumulative stream says again and again, the last is taken; nothing is added up."""
    said = [
        EVENTS[0].replace(b'"usage":null', b'"usage":{"prompt_tokens":7,"completion_tokens":%d}' % n) for n in (1, 2)
    ]
    body, row = streamed(tmp_path, *said, *EVENTS)
    assert body == b"".join(said) + STRIPPED
    assert (row["input_tokens"], row["output_tokens"]) == (7, 2)


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_line_ends(start: bytes, ending: bytes, tmp_path: Path) -> None:
    """Each line end of the standard, and a BOM in front of all, make the same events."""
    stream = start + b"".join(EVENTS[2:3] + EVENTS)  # usage comes first as well, where the BOM is
    body, row = streamed(tmp_path, stream.replace(b"\n", ending))
    assert body == start + STRIPPED.replace(b"\n", ending)
    assert (row["input_tokens"], row["output_tokens"], row["end_reason"]) == (7, 2, "completed")


def test_replay_changes_nothing(tmp_path: Path) -> None:
    """An older state of a call that is written again does not undo the newer one."""

    async def main() -> list[dict[str, Any]]:
        old = LedgerEntry(correlation_id="c-1", timestamp=datetime.now(UTC), model="m", streaming=True)
        new = msgspec.structs.replace(old, revision=1, end_reason="completed", output_tokens=2)
        ledger = Ledger(f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}")
        await ledger.open()
        try:
            for entry in (old, new, old):
                ledger.record(entry)
                await ledger.flush()
            return await ledger.rows()
        finally:
            await ledger.close()

    (row,) = asyncio.run(main())
    assert (row["revision"], row["end_reason"], row["output_tokens"]) == (1, "completed", 2)


def test_cookies_are_not_kept() -> None:
    """What a provider sets as a cookie is sent back by nobody."""
    received: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            received.append(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(2)
            writer.write(b"HTTP/1.1 200 OK\r\nset-cookie: user=alice; path=/\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        upstream = HttpClient()
        async with asyncio.timeout(SOON), server:
            provider = Provider(name="p", url=f"http://localhost:{port}/v1")  # a jar ignores hosts without a name
            for _ in range(2):
                async with aclosing(await upstream.send(provider, b"{}", [])) as reply:
                    assert (await reply.read(), await reply.read()) == (b"{}", b"")
            await upstream.close()

    asyncio.run(main())
    assert len(received) == 2
    assert not any(b"cookie" in request.lower() for request in received)
