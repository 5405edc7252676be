"""Several providers on real sockets: whichever fails, the client sees one clean answer and the ledger every attempt."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import h11
import pytest

from arbstr_asgi import Arbstr, Config, DatabaseConfig, Failover, Policies, Provider, Rule, Server
from arbstr_asgi.cli.server import serving
from tests.support.fake_provider import Provider as Script
from tests.support.fake_provider import provider
from tests.support.raw_http_client import Wire, ask
from tests.support.servers import Gateway, Row, free_port, no_task_left

COST = Decimal("0.13")  # (7 · 10,000 + 2 · 30,000) / 1,000,000
PLAIN: dict[str, Any] = {"model": "m", "messages": []}
STREAM: dict[str, Any] = {"model": "m", "stream": True, "messages": []}
NEVER = "refuses"


@asynccontextmanager
async def routed(
    folder: Path,
    scripts: Sequence[str],
    each: Mapping[str, Any] | None = None,
    **facts: Any,
) -> AsyncIterator[tuple[Gateway, list[Script]]]:
    """A gateway before a provider for each script, `a`, `b` and so on, the first the cheapest."""
    async with AsyncExitStack() as stack:
        there: list[Script] = []
        providers = []
        for place, script in enumerate(scripts):
            it = await stack.enter_async_context(provider())
            there.append(it)
            url = f"http://127.0.0.1:{free_port()}/v1" if script == NEVER else it.url
            rates = {"input_rate": 10_000, "output_rate": 30_000, "base_fee": place}
            providers.append(
                Provider(**{"name": "abc"[place], "url": url, "aliases": {"m": script}, **rates, **(each or {})})
            )
        facts.setdefault("server", Server(public=True))
        facts.setdefault("database", DatabaseConfig(path=str(folder / "ledger.db")))
        arbstr = Arbstr(Config(providers=providers, **facts))
        yield Gateway(arbstr, await stack.enter_async_context(serving(arbstr))), there


async def direct(asked: Mapping[str, Any], script: str = "good") -> Wire:
    """What a client gets that asks the provider itself."""
    async with provider() as it:
        return await ask(it.url.removesuffix("/v1"), {**asked, "model": script})


def shown(attempts: Sequence[Row]) -> list[tuple[Any, ...]]:
    """What matters of attempts."""
    return [(row["number"], row["provider"], row["status"], row["maybe_billed"], row["cost_sats"]) for row in attempts]


async def told(gateway: Gateway, row: Row) -> list[tuple[Any, ...]]:
    """The attempts of a call."""
    return shown(await gateway.arbstr.ledger.attempts(row["correlation_id"]))


@pytest.mark.parametrize("asked", [PLAIN, STREAM], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("script", "status"),
    [(NEVER, None), ("status:503", 503), ("status:500", 500), ("fails_first:429,60", 429), ("status:408", 408)],
)
def test_the_next_one_answers(script: str, status: int | None, asked: dict[str, Any], tmp_path: Path) -> None:
    """Not connected, 408, 429 (however long it asks to wait) and 5xx: the next candidate answers at once, cleanly."""

    async def main() -> None:
        expected = await direct(asked)
        async with routed(tmp_path, [script, "good"]) as (gateway, there):
            began = time.monotonic()
            got = await ask(gateway.url, asked)
            assert time.monotonic() - began < 5
            assert (got.status, got.body, got.clean) == (200, expected.body, True)
            assert got.headers["content-type"] == expected.headers["content-type"]
            assert got.headers["x-arbstr-provider"] == "b"
            assert got.headers["x-arbstr-retries"] == "1/a"
            row = await gateway.row()
            facts = ("provider", "attempts", "end_reason", "success", "error_status", "cost_sats", "input_tokens")
            assert [row[name] for name in facts] == ["b", 2, "completed", True, None, 1 + COST, 7]
            expected_attempts = [(1, "a", status, False, None), (2, "b", 200, False, 1 + COST)]
            assert await told(gateway, row) == expected_attempts
            assert len(there[1].lines) == 1
            assert there[1].lines[0].headers["idempotency-key"] == row["correlation_id"]
        await no_task_left()

    asyncio.run(main())


@pytest.mark.parametrize("script", ["error_first", "error_first:slow"])
def test_a_stream_that_begins_with_an_error_sends_on(script: str, tmp_path: Path) -> None:
    """A 200 whose first event is an error is no answer while another candidate remains, in however many parts."""

    async def main() -> None:
        expected = await direct(STREAM)
        async with routed(tmp_path, [script, "good"]) as (gateway, _):
            got = await ask(gateway.url, STREAM)
            assert (got.status, got.body, got.clean) == (200, expected.body, True)
            row = await gateway.row()
            assert await told(gateway, row) == [(1, "a", 200, False, None), (2, "b", 200, False, 1 + COST)]
            (first, _) = await gateway.arbstr.ledger.attempts(row["correlation_id"])
            assert first["error_message"] == "error in the reply: server_error: overloaded"
        await no_task_left()

    asyncio.run(main())


@pytest.mark.parametrize("asked", [PLAIN, STREAM], ids=["plain", "stream"])
@pytest.mark.parametrize("script", ["error_body", "error_body:slow"])
def test_an_error_under_200_sends_on(script: str, asked: dict[str, Any], tmp_path: Path) -> None:
    """A 200 whose whole body is an error is no answer while another candidate remains, for plain calls too."""

    async def main() -> None:
        expected = await direct(asked)
        async with routed(tmp_path, [script, "good"]) as (gateway, _):
            got = await ask(gateway.url, asked)
            assert (got.status, got.body, got.clean) == (200, expected.body, True)
            row = await gateway.row()
            assert await told(gateway, row) == [(1, "a", 200, False, None), (2, "b", 200, False, 1 + COST)]
            (first, _) = await gateway.arbstr.ledger.attempts(row["correlation_id"])
            assert first["error_message"] == "error in the reply: server_error: overloaded"
        await no_task_left()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("asked", "script"),
    [(PLAIN, "says_nothing"), (STREAM, "says_nothing"), (STREAM, "says_nothing:done")],
    ids=["plain", "stream", "only [DONE]"],
)
@pytest.mark.parametrize("retry_sent", [True, False])
def test_an_empty_reply(retry_sent: bool, asked: dict[str, Any], script: str, tmp_path: Path) -> None:
    """A 200 that says nothing may have been billed: another is asked only with `retry_sent`, else it passes."""

    async def main() -> None:
        expected = await direct(asked, "good" if retry_sent else script)
        async with routed(tmp_path, [script, "good"], {"retry_sent": retry_sent}) as (gateway, there):
            got = await ask(gateway.url, asked)
            assert (got.status, got.body, got.clean) == (200, expected.body, True)
            row = await gateway.row()
            attempts = await told(gateway, row)
            if retry_sent:
                assert attempts == [(1, "a", 200, True, None), (2, "b", 200, False, 1 + COST)]
            else:
                assert (len(attempts), there[1].lines) == (1, [])
        await no_task_left()

    asyncio.run(main())


@pytest.mark.parametrize("asked", [PLAIN, STREAM], ids=["plain", "stream"])
@pytest.mark.parametrize(
    "script", ["closes_before_headers", "resets_before_headers", "silent", "closes_within_headers"]
)
@pytest.mark.parametrize("retry_sent", [True, False])
def test_dies_after_the_request_was_sent(script: str, retry_sent: bool, asked: dict[str, Any], tmp_path: Path) -> None:
    """It may have been worked on and billed: another is asked only with `retry_sent`, and the attempt says so."""

    async def main() -> None:
        each = {"retry_sent": retry_sent, "first_byte_timeout": 0.3 if script == "silent" else 30.0}
        async with routed(tmp_path, [script, "good"], each) as (gateway, there):
            got = await ask(gateway.url, asked)
            row = await gateway.row()
            attempts = await told(gateway, row)
            assert attempts[0] == (1, "a", None, True, None)
            if retry_sent:
                assert (got.status, got.body) == (200, (await direct(asked)).body)
                assert attempts[1:] == [(2, "b", 200, False, 1 + COST)]
            else:
                assert got.status == (504 if script == "silent" else 502)
                assert got.json["error"]["code"] == (
                    "upstream_timeout" if script == "silent" else got.json["error"]["code"]
                )
                assert attempts[1:] == []
                assert there[1].lines == []
                assert (row["provider"], row["attempts"], row["cost_sats"]) == ("a", 1, None)
        await no_task_left()

    asyncio.run(main())


@pytest.mark.parametrize("retry_sent", [True, False])
def test_a_stream_that_dies_before_its_first_event(retry_sent: bool, tmp_path: Path) -> None:
    """With `retry_sent` the next one answers as if nothing had been; without, the client is told, and nobody else."""

    async def main() -> None:
        async with routed(tmp_path, ["closes_after_headers", "good"], {"retry_sent": retry_sent}) as (gateway, there):
            got = await ask(gateway.url, STREAM)
            attempts = await told(gateway, await gateway.row())
            assert attempts[0] == (1, "a", 200, True, None)
            if retry_sent:
                assert (got.status, got.body, got.clean) == (200, (await direct(STREAM)).body, True)
                assert attempts[1:] == [(2, "b", 200, False, 1 + COST)]
            else:
                assert b"upstream_disconnected" in got.body
                assert (attempts[1:], there[1].lines) == ([], [])
        await no_task_left()

    asyncio.run(main())


def test_all_attempts_are_recorded(tmp_path: Path) -> None:
    """Three candidates, of which the last answers: three attempts, one request, and both failures in the header."""

    async def main() -> None:
        async with routed(tmp_path, ["status:503", NEVER, "good"]) as (gateway, _):
            got = await ask(gateway.url, STREAM)
            assert (got.status, got.body) == (200, (await direct(STREAM)).body)
            assert got.headers["x-arbstr-retries"] == "1/a, 1/b"
            row = await gateway.row()
            assert [attempt[1:3] for attempt in await told(gateway, row)] == [("a", 503), ("b", None), ("c", 200)]

    asyncio.run(main())


def test_a_comment_is_the_first_byte(tmp_path: Path) -> None:
    """A keep-alive comment goes to the client at once, and what comes behind it is the answer, good or bad."""

    async def main() -> None:
        async with routed(tmp_path, ["comment_first", "good"]) as (gateway, there):
            got = await ask(gateway.url, STREAM)
            assert got.body.startswith(b": PROCESSING\n\n")
            assert b"too late" in got.body
            assert there[1].lines == []
            assert (await gateway.row())["end_reason"] == "upstream_error"

    asyncio.run(main())


def test_a_late_first_event_is_not_waited_for(tmp_path: Path) -> None:
    """After half a second the reply's head goes out, although the first event is not there."""

    async def main() -> None:
        async with routed(tmp_path, ["late_first", "good"]) as (gateway, there):
            began = time.monotonic()
            wire = await (await Wire.open(gateway.url, STREAM)).until(0)
            assert wire.status == 200
            assert 0.4 < time.monotonic() - began < 5
            there[0].gate.set()
            assert b"too late" in (await wire.until()).body
            assert there[1].lines == []
        await no_task_left()

    asyncio.run(main())


def test_the_only_candidate_is_not_watched(tmp_path: Path) -> None:
    """Where nobody else could answer, a stream that begins with an error passes as it came."""

    async def main() -> None:
        async with routed(tmp_path, ["error_first"]) as (gateway, _):
            got = await ask(gateway.url, STREAM)
            expected = await direct(STREAM, "error_first")
            assert (got.status, got.body, got.clean) == (200, expected.body, True)
            assert "x-arbstr-retries" not in got.headers
            assert (await gateway.row())["end_reason"] == "upstream_error"

    asyncio.run(main())


@pytest.mark.parametrize("asked", [PLAIN, STREAM], ids=["plain", "stream"])
def test_the_last_reply_passes(asked: dict[str, Any], tmp_path: Path) -> None:
    """Where none answers, the client gets the last provider's own reply, status, headers and all."""

    async def main() -> None:
        expected = await direct(asked, "status:429")
        async with routed(tmp_path, ["status:503", "status:429"], failover=Failover(retries=0)) as (gateway, _):
            got = await ask(gateway.url, asked)
            assert (got.status, got.body, got.headers["retry-after"]) == (429, expected.body, "7")
            row = await gateway.row()
            assert (row["provider"], row["attempts"], row["success"], row["error_status"]) == ("b", 2, False, 429)
            assert await told(gateway, row) == [(1, "a", 503, False, None), (2, "b", 429, False, None)]

    asyncio.run(main())


@pytest.mark.parametrize("asked", [PLAIN, STREAM], ids=["plain", "stream"])
def test_an_earlier_reply_passes(asked: dict[str, Any], tmp_path: Path) -> None:
    """Where the last candidate can't be reached, the client gets the reply of the one before."""

    async def main() -> None:
        expected = await direct(asked, "status:429")
        async with routed(tmp_path, ["status:429", NEVER], failover=Failover(retries=0)) as (gateway, _):
            got = await ask(gateway.url, asked)
            assert (got.status, got.body, got.headers["retry-after"]) == (429, expected.body, "7")
            assert got.headers["x-arbstr-provider"] == "a"
            row = await gateway.row()
            assert (row["provider"], row["attempts"], row["success"], row["error_status"]) == ("a", 2, False, 429)
            assert await told(gateway, row) == [(1, "a", 429, False, None), (2, "b", None, False, None)]
        await no_task_left()

    asyncio.run(main())


def test_retry_after_is_waited_for_on_the_last_candidate(tmp_path: Path) -> None:
    """The last candidate is asked again when it said, and then its answer is the answer."""

    async def main() -> None:
        async with routed(tmp_path, [NEVER, "fails_first:429,1"]) as (gateway, there):
            began = time.monotonic()
            got = await ask(gateway.url, STREAM)
            assert time.monotonic() - began > 1
            assert (got.status, got.body) == (200, (await direct(STREAM)).body)
            assert got.headers["x-arbstr-retries"] == "1/a, 1/b"
            keys = {line.headers["idempotency-key"] for line in there[1].lines}
            row = await gateway.row()
            assert keys == {row["correlation_id"]}
            assert await told(gateway, row) == [
                (1, "a", None, False, None),
                (2, "b", 429, False, None),
                (3, "b", 200, False, 1 + COST),
            ]

    asyncio.run(main())


def test_the_last_candidate_is_asked_again_after_a_pause(tmp_path: Path) -> None:
    """Without `retry-after` the pause grows; after `retries` of them the reply passes."""

    async def main() -> None:
        async with routed(tmp_path, [NEVER, "fails_first:503,,9"]) as (gateway, there):
            began = time.monotonic()
            got = await ask(gateway.url, PLAIN)
            assert 1.4 < time.monotonic() - began < 10
            assert got.status == 503
            assert len(there[1].lines) == 3

    asyncio.run(main())


@pytest.mark.parametrize("wait", ["60", "Wed, 21 Oct 2099 07:28:00 GMT"])
def test_a_wait_beyond_the_deadline_is_the_clients(wait: str, tmp_path: Path) -> None:
    """A `retry-after` that is longer than the deadline goes to the client at once."""

    async def main() -> None:
        async with routed(tmp_path, [NEVER, f"fails_first:429,{wait.replace(',', '')}"]) as (gateway, there):
            began = time.monotonic()
            got = await ask(gateway.url, PLAIN)
            assert time.monotonic() - began < 5
            assert got.status == 429
            assert len(there[1].lines) == 1

    asyncio.run(main())


def test_a_single_candidate_is_asked_once(tmp_path: Path) -> None:
    """Its reply passes as it came, `retry-after` and all: to ask again is the client's own affair."""

    async def main() -> None:
        async with routed(tmp_path, ["fails_first:429,1"]) as (gateway, there):
            got = await ask(gateway.url, PLAIN)
            assert (got.status, got.headers["retry-after"]) == (429, "1")
            assert len(there[0].lines) == 1
            assert await told(gateway, await gateway.row()) == [(1, "a", 429, False, None)]

    asyncio.run(main())


def test_a_clients_own_error_is_not_sent_on(tmp_path: Path) -> None:
    """A 400 or 404 is the answer: another provider would say the same, or worse, do it."""

    async def main() -> None:
        async with routed(tmp_path, ["status:404", "good"]) as (gateway, there):
            assert (await ask(gateway.url, PLAIN)).status == 404
            assert there[1].lines == []

    asyncio.run(main())


@pytest.mark.parametrize("status", [401, 402, 403])
def test_a_key_of_ours_that_is_refused_sends_on(status: int, tmp_path: Path) -> None:
    """A provider that refuses our credentials, or wants our money, is our trouble: the next one answers."""

    async def main() -> None:
        async with routed(tmp_path, [f"refuses_key:{status}", "good"], {"api_key": "sk-of-ours"}) as (gateway, _):
            assert (await ask(gateway.url, PLAIN)).status == 200
            assert await told(gateway, await gateway.row()) == [
                (1, "a", status, False, None),
                (2, "b", 200, False, 1 + COST),
            ]

    asyncio.run(main())


@pytest.mark.parametrize("script", ["silent", "late_first"])
def test_nobody_else_is_asked_for_a_client_that_has_left(script: str, tmp_path: Path) -> None:
    """A client that hangs up before the first byte costs no second attempt."""

    async def main() -> None:
        each = {"retry_sent": True, "first_byte_timeout": 1.0, "disconnect": "cancel"}
        async with routed(tmp_path, [script, "good"], each) as (gateway, there):
            wire = await Wire.open(gateway.url, STREAM)
            line = await there[0].line()
            wire.hang_up()
            row = await gateway.row()
            assert row["end_reason"] == "client_disconnected"
            await line.closed.wait()
            assert there[1].lines == []
        await no_task_left()

    asyncio.run(main())


def test_a_plain_call_that_is_left_is_not_sent_on(tmp_path: Path) -> None:
    """A plain call is drained for a client that has left, but a failure of its provider is its end."""

    async def main() -> None:
        each = {"retry_sent": True, "first_byte_timeout": 0.5}
        async with routed(tmp_path, ["silent", "good"], each) as (gateway, there):
            wire = await Wire.open(gateway.url, PLAIN)
            await there[0].line()
            wire.hang_up()
            row = await gateway.row()
            assert (row["attempts"], row["end_reason"]) == (1, "client_disconnected")
            assert there[1].lines == []
            assert gateway.arbstr.snapshot()["drains"] == 0
        await no_task_left()

    asyncio.run(main())


def test_the_cheapest_for_this_request_is_first(tmp_path: Path) -> None:
    """A fee makes one dear for a short call, its rates the other for a long one; who has no price comes last."""

    async def main() -> None:
        async with provider() as there, AsyncExitStack() as stack:
            facts = {"url": there.url, "aliases": {"m": "good"}}
            config = Config(
                providers=[
                    Provider(name="unknown", **facts),
                    Provider(name="fee", input_rate=0, output_rate=0, base_fee=5, **facts),
                    Provider(name="rates", input_rate=1000, output_rate=1000, **facts),
                ],
                server=Server(public=True),
                database=DatabaseConfig(path=str(tmp_path / "l.db")),
            )
            arbstr = Arbstr(config)
            url = await stack.enter_async_context(serving(arbstr))
            for limit, name in ((10, "rates"), (100_000, "fee")):
                got = await ask(url, {**PLAIN, "max_tokens": limit})
                assert got.headers["x-arbstr-provider"] == name
            for limit, name in ((10, "rates"), (100_000, "fee")):
                got = await ask(url, {**STREAM, "max_completion_tokens": limit})
                assert got.headers["x-arbstr-provider"] == name

    asyncio.run(main())


def test_policies(tmp_path: Path) -> None:
    """By header or keyword, what applied is in the row; a name that is unknown is a 400, and reaches nobody."""
    rules = [
        Rule(name="only b", allowed_providers=["b"], keywords=["refactor"]),
        Rule(name="other models", allowed_models=["x"]),
        Rule(name="cheap", max_sats_per_1m_output=1),
    ]

    async def main() -> None:
        async with routed(tmp_path, ["good", "good"], policies=Policies(rules=rules)) as (gateway, _):
            by_name = await ask(gateway.url, PLAIN, headers={"x-arbstr-policy": "only b"})
            assert by_name.headers["x-arbstr-provider"] == "b"
            messages = [
                {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "Refactor!"}]}
            ]
            by_word = await ask(gateway.url, {**STREAM, "messages": messages})
            assert by_word.headers["x-arbstr-provider"] == "b"
            for name, code in (
                ("nope", "unknown_policy"),
                ("other models", "model_not_allowed"),
                ("cheap", "no_provider_within_policy"),
            ):
                refused = await ask(gateway.url, PLAIN, headers={"x-arbstr-policy": name})
                assert (refused.status, refused.json["error"]["code"]) == (400, code)
            assert (await ask(gateway.url, PLAIN)).headers["x-arbstr-provider"] == "a"
            rows = await gateway.rows(6)
            assert [row["policy"] for row in rows] == ["only b", "only b", None, "other models", "cheap", None]
            assert [row["attempts"] for row in rows] == [1, 1, 0, 0, 0, 1]

    asyncio.run(main())


def test_an_open_breaker_takes_a_provider_out(tmp_path: Path) -> None:
    """After three failures in a row the cheapest is not asked any more while another answers."""

    async def main() -> None:
        async with routed(tmp_path, ["status:500", "good"]) as (gateway, there):
            for _ in range(5):
                assert (await ask(gateway.url, STREAM)).status == 200
            assert (len(there[0].lines), len(there[1].lines)) == (3, 5)

    asyncio.run(main())


def test_a_provider_that_hangs_trips_its_breaker(tmp_path: Path) -> None:
    """Time-outs count; with everybody out, the one that has been out longest is asked all the same."""

    async def main() -> None:
        each = {"first_byte_timeout": 0.4, "retry_sent": True}
        async with routed(tmp_path, ["silent", "silent"], each, failover=Failover(retries=0)) as (gateway, there):
            for _ in range(3):
                assert (await ask(gateway.url, PLAIN)).status == 504
            states = gateway.arbstr._gateway.breakers.states(asyncio.get_running_loop().time())
            assert {name: facts["state"] for name, facts in states.items()} == {"a": "open", "b": "open"}
            assert (await ask(gateway.url, PLAIN)).status == 504
            assert (len(there[0].lines), len(there[1].lines)) == (4, 4)

    asyncio.run(main())


def test_a_stream_that_dies_counts_against_its_provider(tmp_path: Path) -> None:
    """A good beginning is no success: a provider whose streams break off is taken out."""

    async def main() -> None:
        async with routed(tmp_path, ["resets_mid_event", "good"]) as (gateway, there):
            for _ in range(3):
                await ask(gateway.url, STREAM)
            assert (await ask(gateway.url, STREAM)).body == (await direct(STREAM)).body
            assert len(there[0].lines) == 3

    asyncio.run(main())


@pytest.mark.parametrize("name", ["user-agent", "accept", "x-stainless-os"])
def test_no_client_breaks_a_provider_with_a_header(name: str, tmp_path: Path) -> None:
    """A value that no request may have is left out; it costs neither the answer nor a provider's breaker."""

    async def main() -> None:
        async with routed(tmp_path, ["good", "good"]) as (gateway, there):
            for _ in range(4):
                assert (await sent_raw(gateway.url, name, b"a\x01b")).status == 200
            assert len(there[0].lines) == 4
            assert name not in there[0].lines[0].headers
            refused = await sent_raw(gateway.url, "content-type", b"application/json; a=\x01")
            assert refused.status == 415

    asyncio.run(main())


async def sent_raw(url: str, name: str, value: bytes) -> Wire:
    """A plain call with a header as it is."""
    body = b'{"model":"m","messages":[]}'
    kind = b"" if name == "content-type" else b"content-type: application/json\r\n"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: h\r\n" + kind + name.encode() + b": " + value
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    writer.write(head + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    wire = Wire(reader, writer)
    wire._http.send(h11.Request(method="POST", target="/", headers=[("host", "h"), ("content-length", "0")]))
    wire._http.send(h11.EndOfMessage())
    return await wire.until()


def test_nobody_is_asked_after_a_pause_for_a_client_that_has_left(tmp_path: Path) -> None:
    """A plain call that is left while the last candidate is waited for ends there."""

    async def main() -> None:
        async with routed(tmp_path, [NEVER, "fails_first:429,1"]) as (gateway, there):
            wire = await Wire.open(gateway.url, PLAIN)
            await there[1].line()
            await asyncio.sleep(0.2)
            wire.hang_up()
            row = await gateway.row()
            assert (row["end_reason"], row["attempts"], row["cost_sats"]) == ("client_disconnected", 2, None)
            assert len(there[1].lines) == 1
            assert gateway.arbstr.snapshot()["drains"] == 0
        await no_task_left()

    asyncio.run(main())


def test_a_key_that_takes_too_long_is_not_sent(tmp_path: Path) -> None:
    """A time-out before the request goes out bills nobody, and the next candidate is asked."""

    async def slow() -> str:
        await asyncio.sleep(30)
        return "never"

    async def main() -> None:
        async with provider() as a, provider() as b:
            facts: dict[str, Any] = {"aliases": {"m": "good"}, "input_rate": 1, "output_rate": 1}
            config = Config(
                providers=[
                    Provider(name="a", url=a.url, api_key=slow, first_byte_timeout=0.3, **facts),
                    Provider(name="b", url=b.url, base_fee=1, **facts),
                ],
                server=Server(public=True),
                database=DatabaseConfig(path=str(tmp_path / "l.db")),
            )
            arbstr = Arbstr(config)
            async with serving(arbstr) as url:
                assert (await ask(url, PLAIN)).headers["x-arbstr-provider"] == "b"
                row = await Gateway(arbstr, url).row()
                first, _ = await arbstr.ledger.attempts(row["correlation_id"])
                assert (first["maybe_billed"], a.lines) == (False, [])

    asyncio.run(main())


def test_an_error_that_blames_the_request_is_the_answer(tmp_path: Path) -> None:
    """Inside a stream, too, a client's own error goes to it, and counts against no provider."""

    async def main() -> None:
        async with routed(tmp_path, ["refusal_first", "good"]) as (gateway, there):
            for _ in range(4):
                assert b"invalid_request_error" in (await ask(gateway.url, STREAM)).body
            assert (len(there[0].lines), there[1].lines) == (4, [])

    asyncio.run(main())


def test_a_kept_reply_is_paid_once(tmp_path: Path) -> None:
    """Where the reply of an earlier candidate passes, its usage is in the sum once."""

    async def main() -> None:
        async with routed(tmp_path, ["error_with_usage", NEVER], failover=Failover(retries=0)) as (gateway, _):
            await ask(gateway.url, STREAM)
            row = await gateway.row()
            assert (row["provider"], row["cost_sats"], row["input_tokens"]) == ("a", COST, 7)
            assert await told(gateway, row) == [(1, "a", 200, False, COST), (2, "b", None, False, None)]
            first, second = await gateway.arbstr.ledger.attempts(row["correlation_id"])
            assert first["latency_ms"] is not None
            assert second["latency_ms"] is not None

    asyncio.run(main())


def test_a_stream_that_is_whole_to_done_is_a_success(tmp_path: Path) -> None:
    """What comes behind [DONE] is not held against a provider, and the answer counts for it."""

    async def main() -> None:
        async with routed(tmp_path, ["reset_behind_done"]) as (gateway, _):
            breaker = gateway.arbstr._gateway.breakers.get("a")
            breaker.mark_failure(breaker.acquire(0.0), 0.0)
            await ask(gateway.url, STREAM)
            await gateway.row()
            assert breaker.failures == 0

    asyncio.run(main())
