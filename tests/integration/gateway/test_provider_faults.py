"""What the client's socket and the ledger get, whatever the provider does."""

import asyncio
import json
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi import Arbstr
from arbstr_asgi.cli.server import serving
from tests.support.fake_provider import (
    RESPONSE_ID,
    RESPONSE_MODEL,
    SCRIPTS,
    STATUS_HEADERS,
    USAGE,
    Line,
    Provider,
    chunk,
    ending,
    hello,
    plain,
    provider,
    stream,
)
from tests.support.raw_http_client import PATH, Wire, ask
from tests.support.servers import Gateway, Row, configured, gateway, no_task_left

COST = Decimal("1.13")  # (7 · 10,000 + 2 · 30,000) / 1,000,000 + 1
NO_USAGE: Row = {
    "input_tokens": None,
    "output_tokens": None,
    "total_tokens": None,
    "cost_sats": None,
    "usage_source": "none",
    "usage_json": None,
}
FULL_USAGE: Row = {
    "input_tokens": 7,
    "output_tokens": 2,
    "total_tokens": 9,
    "cost_sats": COST,
    "usage_source": "provider",
    "usage_json": json.dumps(USAGE, separators=(",", ":")),
}
ALWAYS: Row = {
    "provider": "p",
    "policy": None,
    "attempts": 1,
    "revision": 1,
    "tenant": None,
    "tags": None,
    "cached_tokens": None,
    "cache_write_tokens": None,
    "reasoning_tokens": None,
    "provider_cost_usd": None,
    "provider_cost_sats": None,
    "dearest_cost_sats": None,
    "complexity_score": None,
    "tier": None,
    "service_tier": None,
    "disconnect": None,
}
BEGUN: Row = {"response_model": RESPONSE_MODEL, "response_id": RESPONSE_ID}
UNKNOWN: Row = {"response_model": None, "response_id": None, "finish_reason": None, "provider_model": None}
BROKEN: Row = {"success": False, "error_status": None, "end_reason": "upstream_error", **NO_USAGE}
BROKEN_OFF = {**BROKEN, "error_message": "upstream_error: upstream_disconnected"}
COMPLETED: Row = {"success": True, "error_status": None, "error_message": None, "end_reason": "completed"}
INCOMPLETE: Row = {"success": False, "error_status": None, "error_message": None, "end_reason": "incomplete"}


def refused(status: int, kind: str, code: str, end_reason: str = "upstream_error") -> Row:
    """The row of a call that got an error of ours."""
    facts = {"success": False, "error_status": status, "end_reason": end_reason, **NO_USAGE, **UNKNOWN}
    return {**facts, "error_message": f"{kind}: {code}"}


@dataclass
class Case:
    """A script, what the client gets, and the row.

    `asked` is what the client says in stream_options; without it, we inject. `error` is the code of the error that
    comes after `body`: as an event in a stream that has begun, else as the reply.
    """

    model: str
    row: Row
    body: bytes = b""
    status: int = 200
    clean: bool = True
    error: str | None = None
    stream: bool = True
    asked: bool | None = None
    content_type: str | None = None
    provider: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        kind = "plain" if not self.stream else "injected" if self.asked is None else "passed"
        return f"{self.model}-{kind}"


HELLO, ASKED_HELLO = hello(), hello(asked=True)
HALF = ending(asked=True)[:30]  # of an event
FINISHED = chunk(None, "stop")
GONE = refused(502, "upstream_error", "upstream_disconnected")
UNREADABLE = refused(502, "upstream_error", "upstream_protocol_error")
LATE = refused(504, "upstream_error", "upstream_timeout", "timeout")
STOPPED = {**BROKEN, "end_reason": "timeout", "error_message": "upstream_error: upstream_timeout", **BEGUN}
SILENT, STALLED = {"first_byte_timeout": 1.5}, {"idle_timeout": 0.3}
CUT = {**BROKEN_OFF, **BEGUN, "finish_reason": None}
USED = {**COMPLETED, **FULL_USAGE, **BEGUN, "finish_reason": "stop"}

CASES = [
    # Nothing wrong.
    Case("good", USED, stream()),
    Case("good", USED, stream(asked=True), asked=True),
    Case("good", {**USED, **NO_USAGE}, stream(), asked=False),
    Case("good", USED, plain(), stream=False, content_type="application/json"),
    Case("close_delimited", USED, stream()),
    Case("close_delimited", USED, plain(), stream=False),
    # No answer.
    Case("closes_before_headers", GONE, status=502, error="upstream_disconnected"),
    Case("closes_before_headers", GONE, status=502, error="upstream_disconnected", stream=False),
    Case("resets_before_headers", GONE, status=502, error="upstream_disconnected"),
    Case("closes_within_headers", GONE, status=502, error="upstream_disconnected"),
    Case("garbage", UNREADABLE, status=502, error="upstream_protocol_error"),
    Case("silent", LATE, status=504, error="upstream_timeout", provider=SILENT),
    Case("silent", LATE, status=504, error="upstream_timeout", provider=SILENT, stream=False),
    # Broken off between two events: an error event, and no [DONE].
    Case("closes_after_headers", {**BROKEN_OFF, **UNKNOWN}, error="upstream_disconnected"),
    Case("resets_mid_chunk", CUT, HELLO * 2, error="upstream_disconnected"),
    Case("resets_mid_chunk", CUT, ASKED_HELLO * 2, error="upstream_disconnected", asked=True),
    Case("closes_chunked", CUT, HELLO, error="upstream_disconnected"),
    Case("closes_chunked", CUT, ASKED_HELLO, error="upstream_disconnected", asked=True),
    Case("stalls", STOPPED, HELLO, error="upstream_timeout", provider=STALLED),
    # Within an event: what is held is dropped; what can't be taken back breaks the transfer.
    Case("resets_mid_event", CUT, HELLO, error="upstream_disconnected"),
    Case("resets_mid_event", CUT, ASKED_HELLO + HALF, clean=False, asked=True),
    Case("cuts_length", CUT, HELLO, error="upstream_disconnected"),
    Case("cuts_length", CUT, ASKED_HELLO + HALF, clean=False, asked=True),
    Case("stalls_mid_event", STOPPED, HELLO, error="upstream_timeout", provider=STALLED),
    Case("stalls_mid_event", STOPPED, ASKED_HELLO + HALF, clean=False, asked=True, provider=STALLED),
    # A plain reply can't be ended well.
    Case("closes_after_headers", {**BROKEN_OFF, **UNKNOWN}, clean=False, stream=False),
    Case("closes_chunked", {**BROKEN_OFF, **UNKNOWN}, plain()[:50], clean=False, stream=False),
    Case("cuts_length", {**BROKEN_OFF, **UNKNOWN}, plain()[:50], clean=False, stream=False),
    # Cut where nobody can see it: the client gets what it would have got, and the row knows.
    Case("close_delimited_cut", {**INCOMPLETE, **NO_USAGE, **BEGUN, "finish_reason": None}, HELLO),
    Case("close_delimited_cut", {**INCOMPLETE, **NO_USAGE, **UNKNOWN}, plain()[:50], stream=False),
    Case(
        "close_delimited_finished",
        {**COMPLETED, **NO_USAGE, **BEGUN, "finish_reason": "stop"},
        HELLO + FINISHED,
    ),
    # Answers that aren't what was asked for.
    Case("redirects", refused(502, "upstream_error", "upstream_redirect"), status=502, error="upstream_redirect"),
    Case("html", {**INCOMPLETE, **NO_USAGE, **UNKNOWN}, b"<html>Welcome to the hotel</html>", content_type="text/html"),
    Case(
        "html",
        {**INCOMPLETE, **NO_USAGE, **UNKNOWN},
        b"<html>Welcome to the hotel</html>",
        content_type="text/html",
        stream=False,
    ),
]


async def relayed(case: Case, folder: Path) -> tuple[Wire, Row, Line]:
    """Make the call of a case."""
    async with provider() as upstream:
        async with gateway(folder, upstream.url, case.provider) as gate:
            asked: dict[str, Any] = {"model": case.model, "messages": []}
            if case.stream:
                asked["stream"] = True
            if case.asked is not None:
                asked["stream_options"] = {"include_usage": case.asked}
            wire = await ask(gate.url, asked, headers={"x-user": "alice"})
            row = await gate.row()
        line = upstream.lines[0]
    await no_task_left()
    return wire, row, line


@pytest.mark.parametrize("case", CASES, ids=str)
def test_fault(case: Case, tmp_path: Path) -> None:
    """The client gets this, and nothing that looks like a good end when it wasn't one; and the row tells the truth."""
    wire, row, line = asyncio.run(relayed(case, tmp_path))
    assert (wire.status, wire.clean) == (case.status, case.clean)
    body = wire.body
    if case.error is not None:
        body, error = split_error(case, body)
        assert error["code"] == case.error
        assert set(error) == {"message", "type", "param", "code"}
        assert b"[DONE]" not in wire.body
    assert body == case.body
    default = "application/json" if case.status != 200 or not case.stream else "text/event-stream; charset=utf-8"
    assert wire.headers["content-type"] == (case.content_type or default)
    assert wire.headers["x-arbstr-request-id"] == row["correlation_id"] == line.headers["idempotency-key"]
    assert "set-cookie" not in wire.headers
    check_row(case, row)


def split_error(case: Case, body: bytes) -> tuple[bytes, dict[str, Any]]:
    """The body without the error of ours at its end, and that."""
    if case.status != 200:
        return b"", json.loads(body)["error"]
    before, _, last = body.rpartition(b'data: {"error"')
    assert last.endswith(b"\n\n")
    return before, json.loads(b'{"error"' + last)["error"]


def check_row(case: Case, row: Row) -> None:
    """Every column of the row."""
    expected = {**ALWAYS, **UNKNOWN, **case.row, "model": case.model, "end_user": "alice", "streaming": case.stream}
    assert {name: row[name] for name in expected} == expected
    assert set(row) - set(expected) == {
        *("correlation_id", "timestamp", "worker_id"),
        *("latency_ms", "ttft_ms", "stream_duration_ms", "sent_ms"),
    }
    answered = case.model not in {
        *("closes_before_headers", "resets_before_headers", "closes_within_headers", "garbage", "silent")
    }
    assert (row["latency_ms"] is not None) == answered
    assert row["sent_ms"] is None or answered
    assert (row["stream_duration_ms"] is not None) == (case.stream and answered)
    assert (row["ttft_ms"] is not None) == (bool(case.stream and case.row.get("response_id")))
    times = [row[name] for name in ("latency_ms", "ttft_ms", "stream_duration_ms") if row[name] is not None]
    assert times == sorted(times)
    assert all(0 <= ms < 10_000 for ms in times)
    if row["end_reason"] == "timeout" and answered:
        assert row["stream_duration_ms"] >= 200


@pytest.mark.parametrize("stream_asked", [True, False], ids=["stream", "plain"])
@pytest.mark.parametrize("status", [400, 404, 429, 500, 503, 529])
def test_provider_errors_pass(status: int, stream_asked: bool, tmp_path: Path) -> None:
    """A provider's own error keeps its status, body and the headers that tell when to retry; the row quotes nothing."""

    async def main() -> tuple[Wire, Row]:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            wire = await ask(gate.url, {"model": f"status:{status}", "stream": stream_asked})
            return wire, await gate.row()

    wire, row = asyncio.run(main())
    assert (wire.status, wire.clean) == (status, True)
    assert wire.json["error"]["message"] == "the prompt said: secret"
    assert {name: wire.headers[name] for name in STATUS_HEADERS} == STATUS_HEADERS
    assert wire.headers["content-length"] == str(len(wire.body))
    expected = {
        **NO_USAGE,
        "success": False,
        "error_status": status,
        "end_reason": "completed",
        "error_message": f"provider answered {status}: tokens: rate_limit_exceeded",
    }
    assert {name: row[name] for name in expected} == expected
    assert "secret" not in repr(row)


@pytest.mark.parametrize("status", [401, 402, 403])
@pytest.mark.parametrize("ours", [{"api_key": "sk-ours-1234"}, {"headers": {"authorization": "Bearer sk-ours-1234"}}])
def test_our_key_is_refused(ours: dict[str, Any], status: int, tmp_path: Path) -> None:
    """A 401 about our key is a 502 without a word of the provider's, who quotes it."""

    async def main() -> tuple[Wire, Row]:
        async with provider() as upstream, gateway(tmp_path, upstream.url, ours) as gate:
            wire = await ask(gate.url, {"model": f"refuses_key:{status}", "stream": True})
            return wire, await gate.row()

    wire, row = asyncio.run(main())
    assert wire.status == 502
    assert wire.json["error"]["type"] == "provider_authentication_error"
    assert wire.headers["x-should-retry"] == "false"
    assert "www-authenticate" not in wire.headers
    assert b"sk-ours" not in wire.body
    assert "sk-ours" not in repr(row)
    assert (row["end_reason"], row["error_status"], row["usage_source"]) == ("upstream_error", 502, "none")
    assert row["error_message"] == f"provider_authentication_error: provider_{status}"


def test_the_clients_key_is_refused(tmp_path: Path) -> None:
    """With forward_authorization the key is the client's, and so is the provider's answer to it."""

    async def main() -> tuple[Wire, Row, Line]:
        options = {"forward_authorization": True, "api_key": "sk-ours-1234"}
        async with provider() as upstream, gateway(tmp_path, upstream.url, options) as gate:
            headers = {"authorization": "Bearer sk-theirs"}
            wire = await ask(gate.url, {"model": "refuses_key"}, headers=headers)
            return wire, await gate.row(), upstream.lines[0]

    wire, row, line = asyncio.run(main())
    assert line.headers["authorization"] == "Bearer sk-theirs"
    assert wire.status == 401
    assert wire.json["error"]["message"] == "Incorrect API key provided: Bearer sk-theirs"
    assert (row["success"], row["error_status"]) == (False, 401)
    assert "sk-theirs" not in repr(row)


@pytest.mark.parametrize("stream_asked", [True, False], ids=["stream", "plain"])
def test_compressed_reply(stream_asked: bool, tmp_path: Path) -> None:
    """A reply that is compressed although we asked for identity passes as it is, and is counted."""

    async def main() -> tuple[Wire, Row, Line, Wire]:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            asked = {"model": "zipped", "stream": stream_asked, "stream_options": {"include_usage": True}}
            through = await ask(gate.url, {"model": "zipped", "stream": stream_asked})
            direct = await ask(upstream.url, asked)
            return through, await gate.row(), upstream.lines[0], direct

    through, row, line, direct = asyncio.run(main())
    assert line.headers["accept-encoding"] == "identity"
    assert through.body == direct.body
    assert through.headers["content-encoding"] == "gzip"
    assert through.headers["content-length"] == str(len(direct.body))
    assert {name: row[name] for name in FULL_USAGE} == FULL_USAGE
    assert row["end_reason"] == "completed"


def test_error_event(tmp_path: Path) -> None:
    """An error inside a 200 stream passes as it came, and the row says so in our words."""

    async def main() -> tuple[Wire, Row]:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            return await ask(gate.url, {"model": "error_event", "stream": True}), await gate.row()

    wire, row = asyncio.run(main())
    assert wire.clean
    assert wire.body.startswith(HELLO)
    assert wire.body.count(b'data: {"error"') == 1
    assert (row["success"], row["end_reason"], row["error_status"]) == (False, "upstream_error", None)
    assert row["error_message"] == "error in the reply: server_error: overloaded"


def test_no_provider_listens(tmp_path: Path) -> None:
    """A provider that can't be reached is a 502, and the row of a call that was never sent has no latency."""

    async def main() -> tuple[Wire, Row]:
        async with provider() as upstream:
            url = upstream.url
        async with gateway(tmp_path, url) as gate:
            return await ask(gate.url, {"model": "m", "stream": True}), await gate.row()

    wire, row = asyncio.run(main())
    assert (wire.status, wire.json["error"]["code"]) == (502, "upstream_unreachable")
    assert (row["end_reason"], row["error_status"], row["latency_ms"]) == ("upstream_error", 502, None)


def test_no_cookie_passes(tmp_path: Path) -> None:
    """A cookie that the provider sets for one user reaches neither that user nor the next call."""

    async def main() -> tuple[list[Wire], list[Line], list[Row]]:
        async with provider("localhost") as upstream, gateway(tmp_path, upstream.url) as gate:
            wires = [
                await ask(gate.url, {"model": model}, headers={"x-user": user, "cookie": f"host={user}"})
                for user, model in (("alice", "sets_cookie"), ("bob", "good"))
            ]
            return wires, upstream.lines, await gate.rows(2)

    wires, lines, rows = asyncio.run(main())
    assert [wire.status for wire in wires] == [200, 200]
    assert all("set-cookie" not in wire.headers for wire in wires)
    assert [line.headers["host"].partition(":")[0] for line in lines] == ["localhost", "localhost"]
    assert all("cookie" not in line.headers for line in lines)
    assert [row["end_user"] for row in rows] == ["alice", "bob"]


def test_slow_headers(tmp_path: Path) -> None:
    """The first byte's time-out counts to the end of the headers, however they drip."""

    async def drip(line: Line) -> None:
        await line.send(b"HTTP/1.1 200 OK\r\n")
        while not line.closed.is_set():
            await line.send(b"x")
            await asyncio.sleep(0.02)

    async def main(monkeypatch: pytest.MonkeyPatch) -> tuple[Wire, Row]:
        monkeypatch.setitem(SCRIPTS, "drip", drip)
        async with provider() as upstream, gateway(tmp_path, upstream.url, SILENT) as gate:
            return await ask(gate.url, {"model": "drip"}), await gate.row()

    with pytest.MonkeyPatch.context() as monkeypatch:
        wire, row = asyncio.run(main(monkeypatch))
    assert (wire.status, row["end_reason"], row["error_status"]) == (504, "timeout", 504)


def test_slow_stream_is_not_idle(tmp_path: Path) -> None:
    """The idle time-out counts between chunks, not over all of them, and chunks come one by one."""

    async def main() -> tuple[Wire, Row, bytes]:
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"idle_timeout": 0.3}) as gate:
            wire = await Wire.open(gate.url, {"model": "slow", "stream": True})
            first = (await wire.until(1)).body
            return await wire.until(), await gate.row(), first

    wire, row, first = asyncio.run(main())
    assert first.startswith(HELLO)
    assert len(first) < len(wire.body)
    assert wire.clean
    assert (row["end_reason"], row["output_tokens"]) == ("completed", 2)
    assert row["stream_duration_ms"] >= 400


def test_the_provider_gets_the_request(tmp_path: Path) -> None:
    """The request goes to the provider's own path with its query and key, and with nothing of the host's."""

    async def main() -> Line:
        options = {"api_key": "sk-ours", "query": {"api-version": "1"}, "headers": {"x-org": "o"}}
        async with provider() as upstream, gateway(tmp_path, upstream.url, options) as gate:
            headers = {"cookie": "a=b", "authorization": "Bearer host", "x-stainless-lang": "js", "x-secret": "s"}
            path = f"{PATH}?token=secret"
            wire = await ask(gate.url, {"model": "good"}, headers=headers, path=path)
            assert wire.status == 200
            return upstream.lines[0]

    line = asyncio.run(main())
    assert line.target == "/v1/chat/completions?api-version=1"
    assert line.headers["authorization"] == "Bearer sk-ours"
    assert line.headers["x-stainless-lang"] == "js"
    assert line.headers["x-org"] == "o"
    assert not {"cookie", "x-secret", "x-user"} & set(line.headers)


def test_hundred_calls_at_once(tmp_path: Path) -> None:
    """More streams than connection pools usually allow run side by side, each with its row."""

    async def main() -> tuple[list[Wire], list[Row], Provider]:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            wires = [await Wire.open(gate.url, {"model": "gated", "stream": True}) for _ in range(120)]
            await asyncio.gather(*(wire.until(1) for wire in wires))
            upstream.gate.set()
            await asyncio.gather(*(wire.until() for wire in wires))
            return wires, await asyncio.wait_for(all_rows(gate, 120), 20), upstream

    wires, rows, upstream = asyncio.run(main())
    assert {wire.body for wire in wires} == {stream()}
    assert len({row["correlation_id"] for row in rows}) == len(upstream.lines) == 120
    assert {row["end_reason"] for row in rows} == {"completed"}


async def all_rows(gate: Gateway, count: int) -> list[Row]:
    """More rows than `rows` gives unasked."""
    while True:
        await gate.arbstr.ledger.flush()
        rows = await gate.arbstr.ledger.rows(limit=count + 1)
        if len(rows) == count and all(row["end_reason"] != "in_flight" for row in rows):
            return rows
        await asyncio.sleep(0.01)


def test_held_reply(tmp_path: Path) -> None:
    """With response_headers = "full" a plain reply that breaks off can still be answered with a 502."""

    async def main() -> tuple[Wire, Row]:
        async with provider() as upstream:
            arbstr = Arbstr(configured(tmp_path, upstream.url, response_headers="full"))
            async with serving(arbstr) as url:
                wire = await ask(url, {"model": "closes_chunked"})
                return wire, await Gateway(arbstr, url).row()

    wire, row = asyncio.run(main())
    assert (wire.status, wire.clean, wire.json["error"]["code"]) == (502, True, "upstream_disconnected")
    assert (row["end_reason"], row["error_status"]) == ("upstream_error", 502)
