"""The gateway as its clients and its host see it: what it adds, what it ends, and what it survives."""

import asyncio
import json
import logging
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

import arbstr_asgi.protocols.body_meter
import arbstr_asgi.protocols.stream_meter
from arbstr_asgi import DatabaseConfig
from arbstr_asgi.gateway.gateway import STOP_SECONDS
from arbstr_asgi.ledger.ledger import Ledger
from tests.support.asgi_client import (
    EVENTS,
    JSON_TYPE,
    PLAIN,
    PLAIN_REQUEST,
    SECONDS,
    SSE_TYPE,
    STREAM_REQUEST,
    STRIPPED,
    WAYS,
    App,
    Call,
    Chunks,
    Message,
    Provided,
    Way,
    built,
    call,
    configured,
    rows,
    running,
)

PRICED = {"input_rate": Decimal(1_000_000), "output_rate": Decimal(500_000), "base_fee": Decimal("0.5")}
REFUSING = b'{"model":"m","stream":true,"stream_options":{"include_usage":false}}'


def streaming(*steps: bytes | asyncio.Event | Exception, **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    """A provider that answers with this stream, whatever it is asked."""
    return lambda request: httpx.Response(200, headers={**SSE_TYPE, **headers}, stream=Chunks(*steps))


def one_call(
    folder: Path,
    body: bytes,
    answer: Callable[[httpx.Request], httpx.Response] | None = None,
    *,
    way: Way = "middleware",
    provider: dict[str, Any] | None = None,
    **facts: Any,
) -> tuple[Call, dict[str, Any], bytes]:
    """The reply to one call, its row, and the body that the provider received."""

    async def main() -> tuple[Call, dict[str, Any], bytes]:
        provided = Provided(answer)
        async with running(way, configured(folder, provider or PRICED, **facts), provided) as app:
            reply = await call(app, body)
            [row] = await rows(app)
            return reply, row, provided.requests[0].content

    return asyncio.run(main())


def test_metering_respected(tmp_path: Path) -> None:
    """By default a client may opt out of being counted: its request and its reply pass as they are."""
    reply, row, received = one_call(tmp_path, REFUSING, streaming(STRIPPED))
    assert received == REFUSING
    assert reply.body == STRIPPED
    assert (row["input_tokens"], row["cost_sats"], row["usage_source"]) == (None, None, "none")
    assert row["success"] is True


def test_metering_required(tmp_path: Path) -> None:
    """`require` counts a client that refused, and hides from it everything that this causes."""
    reply, row, received = one_call(tmp_path, REFUSING, streaming(*EVENTS), metering="require")
    assert json.loads(received)["stream_options"] == {"include_usage": True}
    assert reply.body == STRIPPED
    assert (row["input_tokens"], row["output_tokens"], row["usage_source"]) == (7, 2, "provider")
    assert row["cost_sats"] == Decimal("8.5")


@pytest.mark.parametrize("where", ["decode", "learn"])
@pytest.mark.parametrize("body", [STREAM_REQUEST, PLAIN_REQUEST], ids=["stream", "plain"])
def test_metering_bug(
    where: str, body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in the metering leaves the client's bytes as the provider sent them, and a row without counts."""

    def bug(*args: Any, **options: Any) -> Any:
        raise RuntimeError("a bug of ours")

    reading = arbstr_asgi.protocols.reply.ReplySummary
    if where == "decode":
        monkeypatch.setattr(arbstr_asgi.protocols.stream_meter, "decode", bug)
        monkeypatch.setattr(arbstr_asgi.protocols.body_meter, "decode", bug)
    else:
        for name in [name for name in vars(reading) if name.startswith("update")]:
            monkeypatch.setattr(reading, name, bug)
    chunks = [event[at : at + 50] for event in EVENTS for at in range(0, len(event), 50)]
    answer = streaming(*chunks) if body == STREAM_REQUEST else None
    reply, row, _ = one_call(tmp_path, body, answer)
    assert (reply.status, reply.body) == (200, b"".join(EVENTS) if answer else PLAIN)
    assert (row["usage_source"], row["input_tokens"], row["cost_sats"]) == ("none", None, None)
    assert "metering failed with RuntimeError" in caplog.text
    assert "a bug of ours" not in caplog.text


def test_full_headers(tmp_path: Path) -> None:
    """With `response_headers = "full"` a plain reply says what it cost and how long it took; its bytes stay."""
    reply, row, _ = one_call(tmp_path, PLAIN_REQUEST, response_headers="full")
    assert reply.body == PLAIN
    assert reply.headers["content-length"] == str(len(PLAIN))
    assert Decimal(reply.headers["x-arbstr-cost-sats"]) == row["cost_sats"] == Decimal("8.5")
    assert 0 <= int(reply.headers["x-arbstr-latency-ms"]) < 20_000
    assert row["success"] is True


def test_full_headers_of_a_stream(tmp_path: Path) -> None:
    """A stream does not wait for its end: it has no cost header."""
    reply, _, _ = one_call(tmp_path, STREAM_REQUEST, response_headers="full")
    assert reply.body == STRIPPED
    assert "x-arbstr-cost-sats" not in reply.headers
    assert "x-arbstr-latency-ms" not in reply.headers


def test_full_headers_without_cost(tmp_path: Path) -> None:
    """An unknown cost is no header, rather than a zero."""
    reply, row, _ = one_call(tmp_path, PLAIN_REQUEST, provider={"input_rate": 1}, response_headers="full")
    assert "x-arbstr-cost-sats" not in reply.headers
    assert row["cost_sats"] is None


@pytest.mark.parametrize("cut", [1, 7, 1000])
@pytest.mark.parametrize("known", [True, False], ids=["priced", "unpriced"])
def test_cost_comment(cut: int, known: bool, tmp_path: Path) -> None:
    """The cost comes as a comment, which clients ignore, right in front of [DONE], where they stop to read."""
    stream = b"".join(EVENTS)
    answer = streaming(*[stream[at : at + cut] for at in range(0, len(stream), cut)])
    reply, _, _ = one_call(
        tmp_path, STREAM_REQUEST, answer, provider=PRICED if known else {"input_rate": 1}, cost_comment=True
    )
    said = b"8.5" if known else b"unknown"
    before, done, after = reply.body.partition(b"data: [DONE]\n\n")
    kept, comment, cost = before.partition(b": arbstr cost_sats=")
    assert (kept + done + after, bool(comment)) == (STRIPPED, True)
    assert cost.endswith(b"\n\n")
    assert cost.strip() == said or Decimal(cost.strip().decode()) == Decimal(said.decode())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("body", [STREAM_REQUEST, PLAIN_REQUEST], ids=["stream", "plain"])
def test_our_headers(way: Way, body: bytes, tmp_path: Path) -> None:
    """A reply says which call it was and who answered it; an event stream is not to be buffered by proxies."""
    reply, row, _ = one_call(tmp_path, body, way=way)
    assert reply.headers["x-arbstr-request-id"] == row["correlation_id"]
    assert reply.headers["x-arbstr-provider"] == "p"
    stream = body == STREAM_REQUEST
    assert reply.headers.get("x-arbstr-streaming") == ("true" if stream else None)
    assert reply.headers.get("x-accel-buffering") == ("no" if stream else None)


def test_content_length(tmp_path: Path) -> None:
    """A length is dropped exactly where the bytes may change."""
    length = str(len(b"".join(EVENTS)))
    answer = streaming(*EVENTS, **{"content-length": length})
    assert "content-length" not in one_call(tmp_path, STREAM_REQUEST, answer)[0].headers
    own = b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'
    untouched = tmp_path / "untouched"
    untouched.mkdir()
    reply, _, received = one_call(untouched, own, answer)
    assert (received, reply.body, reply.headers["content-length"]) == (own, b"".join(EVENTS), length)
    plain = tmp_path / "plain"
    plain.mkdir()
    assert one_call(plain, PLAIN_REQUEST)[0].headers["content-length"] == str(len(PLAIN))


def test_streams_as_it_comes(tmp_path: Path) -> None:
    """The client has the first event while the provider is still busy with the second; the row exists by then."""

    async def main() -> None:
        gate = asyncio.Event()
        provided = Provided(streaming(EVENTS[0], gate, *EVENTS[1:]))
        async with running("middleware", configured(tmp_path), provided) as app:
            one = Call(app, STREAM_REQUEST)
            task = asyncio.create_task(one.run())
            await asyncio.wait_for(one.begun.wait(), 5)
            assert one.body == EVENTS[0].replace(b',"usage":null', b"")
            [row] = await rows(app)
            assert (row["end_reason"], row["revision"], row["success"]) == ("in_flight", 0, False)
            assert row["latency_ms"] is not None
            gate.set()
            await task
            [row] = await rows(app)
            assert (row["end_reason"], row["revision"], row["success"]) == ("completed", 1, True)

    asyncio.run(main())


def test_health(tmp_path: Path) -> None:
    """The sub-app says that the process lives, and whether its database answers."""

    async def main() -> None:
        app = built("sub-app", configured(tmp_path), Provided())
        async with app.lifespan():
            assert json.loads((await call(app, path="/livez", method="GET")).body) == {"status": "ok"}
            ready = await call(app, path="/readyz", method="GET")
            assert ready.status == 200
            facts = json.loads(ready.body)
            assert facts.pop("status") == "ok"
            assert facts == app.snapshot()
            nothing = ("queued", "queued_bytes", "spilled", "spill_bytes", "degraded", "lost", "late", "drains")
            assert {name: facts[name] for name in nothing} == dict.fromkeys(nothing, 0)
            assert (facts["oldest_unwritten_seconds"], facts["spills"]) == (None, True)
            await call(app, PLAIN_REQUEST)
        ready = await call(app, path="/readyz", method="GET")
        assert ready.status == 503
        assert json.loads(ready.body)["status"] == "unavailable"
        assert (await call(app, path="/livez", method="GET")).status == 200

    asyncio.run(main())


def test_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that raises under a running process is told, but no reason to send clients away: the calls go on."""
    from arbstr_asgi.database.drivers.sqlite import Sqlite

    async def broken(*args: Any) -> Any:
        raise OSError("disk on fire")

    async def main() -> None:
        async with running("sub-app", configured(tmp_path), Provided()) as app:
            with monkeypatch.context() as patched:
                patched.setattr(Sqlite, "fetch", broken)
                ready = await call(app, path="/readyz", method="GET")
                assert (ready.status, json.loads(ready.body)["status"]) == (200, "spilling")
                assert b"fire" not in ready.body
                assert (await call(app, PLAIN_REQUEST)).status == 200
            assert json.loads((await call(app, path="/readyz", method="GET")).body)["status"] == "ok"
            assert len(await rows(app)) == 1

    asyncio.run(main())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/chat/completions", 405),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/", 404),
        ("POST", "/livez", 405),
        ("DELETE", "/readyz", 405),
    ],
)
def test_sub_app_errors(method: str, path: str, status: int, tmp_path: Path) -> None:
    """What the sub-app does not have is said in OpenAI's shape too, with the methods that it has."""

    async def main() -> Call:
        async with running("sub-app", configured(tmp_path), Provided()) as app:
            return await call(app, PLAIN_REQUEST, method=method, path=path)

    reply = asyncio.run(main())
    assert reply.status == status
    assert reply.error["type"] == "invalid_request_error"
    assert ("allow" in reply.headers) == (status == 405)


@pytest.mark.parametrize("way", WAYS)
def test_opens_once(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a lifespan the first requests, all at once, open the ledger once, and every call has its row."""
    opened: list[Ledger] = []
    open_ledger = Ledger.open

    async def counting(self: Ledger, patience: float) -> None:
        opened.append(self)
        await asyncio.sleep(0.01)
        await open_ledger(self, patience)

    monkeypatch.setattr(Ledger, "open", counting)

    async def main() -> None:
        app = built(way, configured(tmp_path), Provided())
        replies = await asyncio.gather(*(call(app, PLAIN_REQUEST) for _ in range(20)))
        assert [reply.status for reply in replies] == [200] * 20
        assert len(opened) == 1
        assert len(await rows(app)) == 20
        await app._gateway.close()

    asyncio.run(main())


@pytest.mark.parametrize("way", WAYS)
def test_cannot_open(
    way: Way, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No ledger, no calls: a 503, a CRITICAL line each time, nothing sent; and another try at a later call."""
    monkeypatch.setattr("arbstr_asgi.gateway.gateway.SECONDS_UNTIL_RETRY", 0.0)
    folder = tmp_path / "not yet there"

    async def main() -> None:
        provided = Provided()
        app = built(way, configured(tmp_path, database=DatabaseConfig(path=str(folder / "ledger.db"))), provided)
        for _ in range(2):
            reply = await call(app, PLAIN_REQUEST)
            assert (reply.status, reply.error["code"]) == (503, "ledger_unavailable")
        assert not provided.requests
        folder.mkdir()
        assert (await call(app, PLAIN_REQUEST)).status == 200
        assert len(await rows(app)) == 1
        await app._gateway.close()

    asyncio.run(main())
    critical = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert len(critical) == 2


def test_cannot_open_at_start(tmp_path: Path) -> None:
    """With a lifespan, the same fails the start."""

    async def main() -> list[Message]:
        database = DatabaseConfig(path=str(tmp_path / "no such folder" / "ledger.db"))
        app = built("middleware", configured(tmp_path, database=database), Provided())
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "lifespan.startup"}

        async def send(message: Message) -> None:
            sent.append(message)

        await app({"type": "lifespan"}, receive, send)
        return sent

    [answer] = asyncio.run(main())
    assert answer["type"] == "lifespan.startup.failed"
    assert answer["message"].startswith("arbstr_asgi: ")


@pytest.mark.parametrize("policy", ["drain", "cancel"])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_send_raises(policy: str, failing: int, tmp_path: Path) -> None:
    """A `send` that raises OSError (servers of ASGI 2.4) is a client that hung up: nothing comes out of the app."""

    async def main() -> None:
        steps = [step for event in EVENTS for step in (event, asyncio.Event())]
        for step in steps:
            if isinstance(step, asyncio.Event):
                step.set()
        provided = Provided(streaming(*steps))
        provider = {**PRICED, "disconnect": policy}
        async with running("middleware", configured(tmp_path, provider), provided) as app:
            one = Call(app, STREAM_REQUEST)

            async def send(message: Message) -> None:
                if len(one.messages) >= failing:
                    raise OSError("gone")
                one.messages.append(message)

            one.send = send  # type: ignore[method-assign]
            await one.run()
            [row] = await rows(app)
            assert (row["end_reason"], row["success"]) == ("client_disconnected", True)
            assert row["input_tokens"] == (7 if policy == "drain" else None)
            assert len(one.messages) == failing

    asyncio.run(main())


def test_receive_that_never_blocks(tmp_path: Path) -> None:
    """A `receive` that says the same for ever neither spins the loop nor ends the call."""

    async def main() -> None:
        gate = asyncio.Event()
        provided = Provided(streaming(EVENTS[0], gate, *EVENTS[1:]))
        async with running("middleware", configured(tmp_path), provided) as app:
            one = Call(app, STREAM_REQUEST)
            count = 0

            async def receive() -> Message:
                nonlocal count
                count += 1
                if count > 10_000:  # enough is known; a spinning loop could not even time out
                    await asyncio.sleep(SECONDS)
                return {"type": "http.request", "body": STREAM_REQUEST if count == 1 else b"", "more_body": False}

            one.receive = receive  # type: ignore[method-assign]
            task = asyncio.create_task(one.run())
            await asyncio.wait_for(one.begun.wait(), 5)
            await asyncio.sleep(0.05)
            assert count < 100
            gate.set()
            await task
            assert one.body == STRIPPED
            [row] = await rows(app)
            assert row["end_reason"] == "completed"

    asyncio.run(main())


@pytest.mark.parametrize("broken", ["raises", "returns nonsense"])
def test_receive_that_breaks(broken: str, tmp_path: Path) -> None:
    """A `receive` that fails after the body says nothing about the client: it gets its reply."""

    async def main() -> None:
        provided = Provided()
        async with running("middleware", configured(tmp_path), provided) as app:
            one = Call(app, STREAM_REQUEST)
            original = one.receive

            async def receive() -> Message:
                if one.receives:
                    if broken == "raises":
                        raise RuntimeError("no more")
                    return {"type": "unheard.of"}
                return await original()

            one.receive = receive  # type: ignore[method-assign]
            await one.run()
            assert one.body == STRIPPED

    asyncio.run(main())


@pytest.mark.parametrize("when", ["before the answer", "in the stream"])
def test_cancelled_from_outside(when: str, tmp_path: Path) -> None:
    """A server that cancels the request's task gets its CancelledError, and the row says that the server ended it."""

    async def main() -> None:
        never = asyncio.Event()

        async def waiting(request: httpx.Request) -> httpx.Response:
            await never.wait()
            raise AssertionError

        streamed = streaming(EVENTS[0], never)
        handler: Any = waiting if when == "before the answer" else streamed
        async with running("middleware", configured(tmp_path), handler) as app:
            one = Call(app, STREAM_REQUEST)
            task = asyncio.create_task(one.run())
            await (asyncio.sleep(0.05) if when == "before the answer" else one.begun.wait())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            [row] = await rows(app)
            assert (row["end_reason"], row["success"], row["revision"]) == ("shutdown", False, 1)

    asyncio.run(main())


def test_fifty_streams(tmp_path: Path) -> None:
    """Fifty streams at once, chunk by chunk in turns: each client gets its own bytes, each call its own row."""

    def answer(request: httpx.Request) -> httpx.Response:
        number = json.loads(request.content)["model"].encode()
        events = [event.replace(b"Hi", number).replace(b'"c1"', b'"' + number + b'"') for event in EVENTS]
        usage = events[2].replace(b'"prompt_tokens":7', b'"prompt_tokens":1' + number)

        class Turns(httpx.AsyncByteStream):
            async def __aiter__(self) -> Any:
                for at in range(0, len(stream), 37):
                    await asyncio.sleep(0)
                    yield stream[at : at + 37]

        stream = b"".join((events[0], events[1], usage, events[3]))
        return httpx.Response(200, headers=SSE_TYPE, stream=Turns())

    async def main() -> None:
        names = [f"{number:03}" for number in range(50)]
        async with running("middleware", configured(tmp_path, PRICED), Provided(answer)) as app:
            bodies = [b'{"model":"' + name.encode() + b'","stream":true}' for name in names]
            replies = await asyncio.gather(*(call(app, body) for body in bodies))
            found = {row["correlation_id"]: row for row in await rows(app)}
            assert len(found) == 50
            for name, reply in zip(names, replies, strict=True):
                assert reply.body == STRIPPED.replace(b"Hi", name.encode()).replace(b'"c1"', f'"{name}"'.encode())
                row = found[reply.headers["x-arbstr-request-id"]]
                assert (row["model"], row["response_id"], row["input_tokens"]) == (name, name, int(f"1{name}"))

    asyncio.run(main())


@pytest.mark.parametrize("behind", [httpx.ReadError("gone"), asyncio.Event()], ids=["breaks", "stalls"])
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_body_of_known_length(pieces: int, behind: Exception | asyncio.Event, tmp_path: Path) -> None:
    """A body is whole with its last byte, whatever the provider does then, and goes with no message too many."""
    half = len(PLAIN) // 2
    chunks = [PLAIN] if pieces == 1 else [PLAIN[:half], PLAIN[half:]]

    def answer(request: httpx.Request) -> httpx.Response:
        headers = {**JSON_TYPE, "content-length": str(len(PLAIN))}
        return httpx.Response(200, headers=headers, stream=Chunks(*chunks, behind))

    async def main() -> None:
        async with running("middleware", configured(tmp_path, PRICED), Provided(answer)) as app, asyncio.timeout(5):
            reply = await call(app, PLAIN_REQUEST)
            assert [message.get("body") for message in reply.messages[1:]] == chunks
            assert reply.ended
            (row,) = await rows(app)
            assert (row["end_reason"], row["success"], row["error_message"]) == ("completed", True, None)

    asyncio.run(main())


@pytest.mark.parametrize("body", [STREAM_REQUEST, PLAIN_REQUEST], ids=["stream", "plain"])
def test_close_ends_streams(body: bytes, tmp_path: Path) -> None:
    """Closing under running calls ends them at once, tells their clients, and writes their rows."""

    async def main() -> tuple[Call, BaseException | None]:
        never = asyncio.Event()
        chunk = EVENTS[0] if body == STREAM_REQUEST else PLAIN[:20]
        media = SSE_TYPE if body == STREAM_REQUEST else JSON_TYPE
        app = built(
            "middleware",
            configured(tmp_path),
            lambda request: httpx.Response(200, headers=media, stream=Chunks(chunk, never)),
        )
        await app._gateway.open()
        one = Call(app, body)
        task = asyncio.create_task(one.run())
        await asyncio.wait_for(one.begun.wait(), 5)
        began = asyncio.get_running_loop().time()
        await app._gateway.close()
        assert asyncio.get_running_loop().time() - began < STOP_SECONDS
        await asyncio.wait([task], timeout=1)
        await app._gateway.open()
        [row] = await rows(app)
        assert (row["end_reason"], row["success"], row["revision"]) == ("shutdown", False, 1)
        assert row["error_message"] == "server_error: shutdown"
        await app._gateway.close()
        return one, task.exception()

    one, error = asyncio.run(main())
    if body == STREAM_REQUEST:
        assert error is None
        assert one.ended
        last = one.body.removeprefix(EVENTS[0].replace(b',"usage":null', b""))
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "shutdown"
        assert b"[DONE]" not in one.body
    else:
        assert error is not None
        assert not one.ended


def test_close_while_draining(tmp_path: Path) -> None:
    """Reading on for clients that have left ends with the server, and its rows are written."""

    async def main() -> None:
        never = asyncio.Event()
        app = built("sub-app", configured(tmp_path), Provided(streaming(EVENTS[0], never)))
        async with app.lifespan():
            one = Call(app, STREAM_REQUEST)
            task = asyncio.create_task(one.run())
            await asyncio.wait_for(one.begun.wait(), 5)
            one.gone.set()
            await asyncio.sleep(0.02)
            ready = await call(app, path="/readyz", method="GET")
            assert json.loads(ready.body)["drains"] == 1
            assert not task.done()
            app.wind_down(30.0)
            await asyncio.wait_for(task, 1)
            [row] = await rows(app)
            assert (row["end_reason"], row["success"]) == ("client_disconnected", True)
            assert row["input_tokens"] is None

    asyncio.run(main())


@pytest.mark.parametrize("policy", ["drain", "cancel"])
def test_client_leaves_a_stream(policy: str, tmp_path: Path) -> None:
    """A client that hangs up is counted to the end by default, and not at all where that is not wanted."""

    async def main() -> None:
        gate = asyncio.Event()
        provided = Provided(streaming(EVENTS[0], gate, *EVENTS[1:]))
        async with running("middleware", configured(tmp_path, {**PRICED, "disconnect": policy}), provided) as app:
            one = Call(app, STREAM_REQUEST)
            task = asyncio.create_task(one.run())
            await asyncio.wait_for(one.begun.wait(), 5)
            one.gone.set()
            await asyncio.sleep(0.02)
            assert task.done() == (policy == "cancel")
            gate.set()
            await task
            [row] = await rows(app)
            assert (row["end_reason"], row["success"]) == ("client_disconnected", True)
            assert row["cost_sats"] == (Decimal("8.5") if policy == "drain" else None)
            assert one.body == EVENTS[0].replace(b',"usage":null', b"")

    asyncio.run(main())


def test_unasked_usage_stays(tmp_path: Path) -> None:
    """With `inject = false` a provider is not asked for usage, and every byte it sends passes."""
    reply, row, received = one_call(tmp_path, STREAM_REQUEST, streaming(*EVENTS), provider={**PRICED, "inject": False})
    assert received == STREAM_REQUEST
    assert reply.body == b"".join(EVENTS)
    assert row["input_tokens"] == 7


def test_host_gets_the_rest(tmp_path: Path) -> None:
    """Everything that is not the one path is the host's, its scope the very object that the server gave."""

    async def main() -> None:
        scopes: list[Any] = []

        async def host(scope: Any, receive: Any, send: Any) -> None:
            scopes.append(scope)

        app: App = built("middleware", configured(tmp_path), Provided())
        app.app = host
        others = [
            {"type": "websocket", "path": "/v1/chat/completions"},
            {"type": "http", "method": "GET", "path": "/v1/chat/completions"},
            {"type": "http", "method": "POST", "path": "/llm/v1/chat/completions"},
            {"type": "anything"},
        ]
        for scope in others:
            await app(scope, None, None)
        assert all(one is other for one, other in zip(scopes, others, strict=True))
        mounted = await call(
            app, PLAIN_REQUEST, path="/llm/v1/chat/completions", scope={"root_path": "/llm"}, headers=JSON_TYPE
        )
        assert mounted.status == 200
        await app._gateway.close()

    asyncio.run(main())
