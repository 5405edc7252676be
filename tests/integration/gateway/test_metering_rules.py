"""The seven rules that this project began with, and `metering = "require"`: one test each, through the gateway."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from arbstr_asgi import Arbstr, Config, DatabaseConfig, Provider, Server
from arbstr_asgi.protocols.chat import ensure_stream_options, parse

FIVE_SECONDS = 5.0
UNKNOWN = "no-such-call"
ID = b'"id":"c1","object":"chat.completion.chunk","created":1,"model":"m-1"'
USAGE = b'{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}'
EVENTS_ASKED = [
    b"data: {" + ID + b',"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":null}],"usage":null}\n\n',
    b"data: {" + ID + b',"choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":null}\n\n',
    b"data: {" + ID + b',"choices":[],"usage":' + USAGE + b"}\n\n",
    b"data: [DONE]\n\n",
]
EVENTS_UNASKED = [event.replace(b',"usage":null', b"") for event in EVENTS_ASKED if b"prompt_tokens" not in event]
PLAIN_REPLY = b'{"id":"c1","object":"chat.completion","model":"m-1","choices":[],"usage":' + USAGE + b"}"


class Chunks(httpx.AsyncByteStream):
    """A reply that comes chunk by chunk, and waits for `gate` before its last ones."""

    def __init__(self, chunks: list[bytes], gate: asyncio.Event | None = None) -> None:
        self._chunks = chunks
        self._gate = gate

    async def __aiter__(self) -> Any:
        for number, chunk in enumerate(self._chunks):
            if self._gate is not None and number:
                await self._gate.wait()
            yield chunk


class Provided:
    """A provider that remembers what it received, and says usage where it was asked to."""

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        self.bodies: list[bytes] = []
        self.gate = gate

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(request.content)
        asked = json.loads(request.content)
        if asked.get("stream") is not True:
            return httpx.Response(200, headers={"content-type": "application/json"}, stream=Chunks([PLAIN_REPLY]))
        options = asked.get("stream_options")
        wanted = isinstance(options, dict) and options.get("include_usage") is True
        chunks = Chunks(EVENTS_ASKED if wanted else EVENTS_UNASKED, self.gate)
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=chunks)


def run(
    folder: Path, act: Callable[[Arbstr, Provided], Awaitable[None]], *, metering: Any = "respect", gate: bool = False
) -> list[dict[str, Any]]:
    """Let `act` use the gateway in front of a provider made by hand; gives the rows in the order of the calls."""

    async def main() -> list[dict[str, Any]]:
        provided = Provided(asyncio.Event() if gate else None)
        rates = {"input_rate": Decimal(1_000_000), "output_rate": Decimal(500_000), "base_fee": Decimal("0.5")}
        config = Config(
            providers=(Provider(name="p", url="http://provider.invalid/v1", **rates),),
            server=Server(public=True),
            database=DatabaseConfig(path=str(folder / "ledger.db")),
            metering=metering,
        )
        arbstr = Arbstr(config, transport=httpx.MockTransport(provided))
        async with asyncio.timeout(FIVE_SECONDS), arbstr.lifespan():
            await act(arbstr, provided)
            await arbstr.ledger.flush()
            return [*reversed(await arbstr.ledger.rows())]

    return asyncio.run(main())


async def call(arbstr: Arbstr, body: bytes, begun: asyncio.Event | None = None) -> bytes:
    """Post `body` with a `receive` and a `send` made by hand; gives the reply's body, sets `begun` at its start."""
    received: list[bytes] = []
    messages: list[MutableMapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> MutableMapping[str, Any]:
        if messages:
            return messages.pop()
        await asyncio.sleep(FIVE_SECONDS)
        return {"type": "http.disconnect"}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.body":
            received.append(message["body"])
            if begun is not None:
                begun.set()

    path = "/v1/chat/completions"
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await arbstr(scope, receive, send)
    return b"".join(received)


def test_rule_1_usage_is_asked_for(tmp_path: Path) -> None:
    """A streaming request reaches the provider with include_usage, and the client sees none of what that causes."""

    async def act(arbstr: Arbstr, provided: Provided) -> None:
        got = await call(arbstr, b'{"model":"m","stream":true,"messages":[]}')
        assert json.loads(provided.bodies[0])["stream_options"] == {"include_usage": True}
        assert got == b"".join(EVENTS_UNASKED)

    (row,) = run(tmp_path, act)
    assert (row["input_tokens"], row["output_tokens"], row["end_reason"]) == (7, 2, "completed")
    assert row["cost_sats"] == Decimal("8.5")


@pytest.mark.parametrize(
    ("sent", "arrives"),
    [
        (b"null", {"include_usage": True}),
        (b"{}", {"include_usage": True}),
        (b'{"include_usage":null}', {"include_usage": True}),
        (b'{"include_obfuscation":false}', {"include_usage": True, "include_obfuscation": False}),
        (b'{"include_usage":false,"x":1}', {"include_usage": False, "x": 1}),
        (b'{"include_usage":true}', {"include_usage": True}),
        (b'"odd"', "odd"),
    ],
)
def test_rule_2_stream_options_are_merged(tmp_path: Path, sent: bytes, arrives: object) -> None:
    """The client's own stream_options survive, an explicit false included, and its choice decides what it sees."""

    async def act(arbstr: Arbstr, provided: Provided) -> None:
        got = await call(arbstr, b'{"model":"m","stream":true,"stream_options":' + sent + b"}")
        assert json.loads(provided.bodies[0])["stream_options"] == arrives
        asked_itself = sent == b'{"include_usage":true}'
        assert got == b"".join(EVENTS_ASKED if asked_itself else EVENTS_UNASKED)

    (row,) = run(tmp_path, act)
    counted = isinstance(arrives, dict) and arrives["include_usage"]
    assert row["usage_source"] == ("provider" if counted else "none")
    assert row["cost_sats"] == (Decimal("8.5") if counted else None)


def test_require_overrides_an_opt_out(tmp_path: Path) -> None:
    """With `require` a client's false becomes true, its other options survive, and it sees nothing of the usage."""

    async def act(arbstr: Arbstr, provided: Provided) -> None:
        got = await call(arbstr, b'{"model":"m","stream":true,"stream_options":{"include_usage":false,"x":1}}')
        assert json.loads(provided.bodies[0])["stream_options"] == {"include_usage": True, "x": 1}
        assert got == b"".join(EVENTS_UNASKED)

    (row,) = run(tmp_path, act, metering="require")
    assert (row["input_tokens"], row["usage_source"]) == (7, "provider")


def test_rule_3_plain_requests_pass_byte_for_byte(tmp_path: Path) -> None:
    """A plain request reaches the provider, and its reply the client, without one byte changed."""
    body = b' {"model" : "m", "temperature":1.0,\n"n":1e0, "x":"\\u00e9", "big":123456789012345678901234567890}\n'

    async def act(arbstr: Arbstr, provided: Provided) -> None:
        assert await call(arbstr, body) == PLAIN_REPLY
        assert provided.bodies == [body]

    (row,) = run(tmp_path, act)
    assert (row["input_tokens"], row["output_tokens"], row["streaming"]) == (7, 2, False)


def test_rule_4_only_the_member_is_spliced_in(tmp_path: Path) -> None:
    """The parsed request stays as it was, and but for the spliced member so does each byte of a streaming body."""
    body = b'{ "temperature":1.0, "model":"m","str\\u0065am":true, "x":"\\"stream_options\\":null", "big":' + b"9" * 40
    body += b"}\n"
    request = parse(body)
    assert ensure_stream_options(request) != body
    assert request == parse(body)
    with pytest.raises(AttributeError):
        request.body = b""  # type: ignore[misc]

    async def act(arbstr: Arbstr, provided: Provided) -> None:
        await call(arbstr, body)
        assert provided.bodies[0].replace(b'"stream_options":{"include_usage":true},', b"", 1) == body

    run(tmp_path, act)


def test_rule_5_update_usage_counts_rows(tmp_path: Path) -> None:
    """update_usage writes exactly three columns of one row and says 1, or 0 for a call that nobody made."""
    before: list[dict[str, Any]] = []

    async def act(arbstr: Arbstr, provided: Provided) -> None:
        await call(arbstr, b'{"model":"m"}')
        await arbstr.ledger.flush()
        before.extend(await arbstr.ledger.rows())
        known = before[0]["correlation_id"]
        assert await arbstr.ledger.update_usage(UNKNOWN, 1, 1, None) == 0
        assert await arbstr.ledger.update_usage(known, 11, None, Decimal("0.123456789")) == 1
        assert await arbstr.ledger.update_usage(known, 11, None, Decimal("0.123456789")) == 1

    (row,) = run(tmp_path, act)
    changed = {name for name, value in row.items() if value != before[0][name]} - {"revision"}
    assert changed == {"input_tokens", "output_tokens", "cost_sats"}
    assert (row["input_tokens"], row["output_tokens"], row["cost_sats"]) == (11, None, Decimal("0.123456789"))


def test_rule_6_spawned_updates_are_finished_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """spawn_usage_update never raises, warns about a call that nobody made, and is done when the lifespan has ended."""
    caplog.set_level(logging.DEBUG, "arbstr_asgi.ledger")
    made: list[Arbstr] = []

    async def act(arbstr: Arbstr, provided: Provided) -> None:
        await call(arbstr, b'{"model":"m"}')
        await arbstr.ledger.flush()
        (row,) = await arbstr.ledger.rows()
        arbstr.ledger.spawn_usage_update(UNKNOWN, 1, 1, None)
        arbstr.ledger.spawn_usage_update(row["correlation_id"], 12, 3, None)
        made.append(arbstr)

    # The reading in `run` would wait for the update; so this reads from the file afterwards.
    async def act_and_leave(arbstr: Arbstr, provided: Provided) -> None:
        await act(arbstr, provided)
        raise EOFError

    with pytest.raises(EOFError):
        run(tmp_path, act_and_leave)
    levels = {record.levelno for record in caplog.records if "usage of" in record.getMessage()}
    assert levels == {logging.WARNING, logging.DEBUG}
    made[0].ledger.spawn_usage_update(UNKNOWN, 1, 1, None)  # closed by now: logged, not raised

    async def nothing(arbstr: Arbstr, provided: Provided) -> None:
        await asyncio.sleep(0)

    (row,) = run(tmp_path, nothing)
    assert (row["input_tokens"], row["output_tokens"], row["cost_sats"]) == (12, 3, None)


def test_rule_7_a_row_at_the_answer_and_its_end_later(tmp_path: Path) -> None:
    """The row is there once the provider has answered, in flight and without tokens, and is finished at the end."""
    early: list[dict[str, Any]] = []

    async def act(arbstr: Arbstr, provided: Provided) -> None:
        assert provided.gate is not None
        begun = asyncio.Event()
        task = asyncio.create_task(call(arbstr, b'{"model":"m","stream":true}', begun))
        await begun.wait()
        await arbstr.ledger.flush()
        early.extend(await arbstr.ledger.rows())
        await asyncio.sleep(0.03)
        provided.gate.set()
        await task

    (late,) = run(tmp_path, act, gate=True)
    assert [row["end_reason"] for row in early] == ["in_flight"]
    assert early[0]["latency_ms"] is not None
    assert (early[0]["input_tokens"], early[0]["stream_duration_ms"]) == (None, None)
    assert late["correlation_id"] == early[0]["correlation_id"]
    assert late["latency_ms"] == early[0]["latency_ms"]
    assert (late["input_tokens"], late["output_tokens"], late["end_reason"]) == (7, 2, "completed")
    assert late["stream_duration_ms"] >= 30
