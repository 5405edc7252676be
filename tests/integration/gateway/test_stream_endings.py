"""How calls end when their provider or their client does something odd at the end."""

import asyncio
import decimal
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from arbstr_asgi import Arbstr, Provider
from arbstr_asgi.gateway.deadline import Deadline
from arbstr_asgi.protocols.usage import Usage, read_usage
from arbstr_asgi.providers.pricing import cost
from tests.support.asgi_client import PLAIN_REQUEST, Provided, call, configured
from tests.support.fake_provider import plain, provider, stream
from tests.support.raw_http_client import Wire, ask
from tests.support.servers import Row, gateway

WHOLE: Row = {
    "end_reason": "completed",
    "success": True,
    "output_tokens": 2,
    "error_message": None,
    "error_status": None,
}


def asked(model: str, *, streaming: bool = True) -> dict[str, Any]:
    """A request."""
    return {"model": model, "stream": streaming, "messages": []}


def check(row: Row, expected: Row) -> None:
    """The row says this, among other things."""
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize("model", ["reset_behind_done", "silent_behind_done"])
def test_broken_behind_done(model: str, tmp_path: Path) -> None:
    """What breaks after [DONE] breaks nothing: the client has had everything, and the row says so."""

    async def main() -> tuple[Wire, Row]:
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"idle_timeout": 0.3}) as gate:
            return await ask(gate.url, asked(model)), await gate.row()

    wire, row = asyncio.run(main())
    assert wire.body == stream()
    assert wire.clean
    check(row, WHOLE)


@pytest.mark.parametrize("model", ["pings_behind_done", "silent_behind_done"])
def test_left_behind_done(model: str, tmp_path: Path) -> None:
    """A provider that doesn't end after [DONE] is not waited for once the client has gone."""

    async def main() -> tuple[Row, float]:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            wire = await Wire.open(gate.url, asked(model))
            await wire.until(len(stream()))
            wire.hang_up()
            begun = time.monotonic()
            row = await gate.row()
            return row, time.monotonic() - begun

    row, seconds = asyncio.run(main())
    check(row, WHOLE)
    assert seconds < 10


def test_garbled_chunk(tmp_path: Path) -> None:
    """A chunk that is none ends the reply at once, although the connection stays open."""

    async def main() -> tuple[Wire, Row]:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            return await ask(gate.url, asked("garbled")), await gate.row()

    wire, row = asyncio.run(main())
    assert b"upstream_disconnected" in wire.body
    check(row, {"end_reason": "upstream_error", "success": False})


def test_two_gzip_members(tmp_path: Path) -> None:
    """A reply in several gzip members is read whole."""

    async def main() -> Row:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            await ask(gate.url, asked("two_members", streaming=False))
            return await gate.row()

    check(asyncio.run(main()), WHOLE)
    assert plain()


def test_our_key_where_the_client_sent_none(tmp_path: Path) -> None:
    """With forward_authorization, a client without a key uses ours, and hears nothing of its refusal."""

    async def main() -> tuple[Wire, Row]:
        options = {"forward_authorization": True, "api_key": "sk-ours-1234"}
        async with provider() as upstream, gateway(tmp_path, upstream.url, options) as gate:
            return await ask(gate.url, asked("refuses_key")), await gate.row()

    wire, row = asyncio.run(main())
    assert wire.status == 502
    assert b"sk-ours" not in wire.body
    assert row["error_message"] == "provider_authentication_error: provider_401"


@pytest.mark.parametrize("status", ["101", "099", "799"])
def test_no_valid_status(status: str, tmp_path: Path) -> None:
    """A status that no server can pass on is an upstream error."""

    async def main() -> tuple[Wire, Row]:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            return await ask(gate.url, asked(f"status:{status}", streaming=False)), await gate.row()

    wire, row = asyncio.run(main())
    assert wire.status == 502
    check(row, {"end_reason": "upstream_error", "error_status": 502})


def test_one_loop_after_another(tmp_path: Path) -> None:
    """A gateway that nobody closes serves the next event loop as it served the last."""
    app = Arbstr(configured(tmp_path), transport=httpx.MockTransport(Provided()))

    async def main() -> None:
        assert (await call(app, PLAIN_REQUEST)).status == 200

    async def count() -> int:
        async with app.lifespan():
            return len(await app.ledger.rows())

    for _ in range(3):
        asyncio.run(main())
    assert app.ledger.lost == 0
    assert asyncio.run(count()) == 3


def test_lifespan_after_the_first_request(tmp_path: Path) -> None:
    """A lifespan that begins when a request has opened the ledger already finds it open."""
    app = Arbstr(configured(tmp_path), transport=httpx.MockTransport(Provided()))

    async def main() -> int:
        await call(app, PLAIN_REQUEST)
        async with app.lifespan():
            await call(app, PLAIN_REQUEST)
            await app.ledger.flush()
            return len(await app.ledger.rows())

    assert asyncio.run(main()) == 2


def test_host_rounds_otherwise() -> None:
    """The host's decimal context changes neither cost nor reading."""
    with decimal.localcontext(decimal.Context(prec=3, traps=[decimal.Inexact, decimal.InvalidOperation])):
        rates = Provider(name="a", url="http://h", input_rate=Decimal("12345.678"), output_rate=1)
        assert cost(Usage(input_tokens=3000, output_tokens=1), rates) == Decimal("37.037035")
        usage = read_usage({"prompt_tokens": 1, "cost": Decimal("0.000123456789")})
        assert usage is not None
        assert usage.cost_usd == "0.000123456789"
        ticks = read_usage({"prompt_tokens": 1, "cost_in_usd_ticks": 123456789})
        assert ticks is not None
        assert ticks.cost_usd == "0.0123456789"


def test_deadline_after_a_pause() -> None:
    """A short deadline that was paused for long comes soon after it is set again."""

    async def main() -> float:
        interrupt = Deadline()
        with interrupt:
            interrupt.start(0.1)
            interrupt.extend(float("inf"))
            await asyncio.sleep(0.3)
            begun = interrupt.now()
            interrupt.extend(begun + 0.1)
            await asyncio.sleep(5)
        return interrupt.now() - begun

    assert asyncio.run(main()) < 2
