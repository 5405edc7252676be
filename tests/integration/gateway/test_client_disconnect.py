"""Clients that hang up, at every moment: what the provider sees of it, and what the ledger says."""

import asyncio
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi import Drain
from tests.support.fake_provider import Line, Provider, provider, stream
from tests.support.raw_http_client import Wire, eventually
from tests.support.servers import Gateway, Row, gateway, ledger_rows, no_task_left

SOON = 3.0  # seconds, for what takes milliseconds
FULL: Row = {
    "end_reason": "client_disconnected",
    "success": True,
    "error_status": None,
    "error_message": None,
    "input_tokens": 7,
    "output_tokens": 2,
    "cost_sats": Decimal("1.13"),
    "usage_source": "provider",
    "disconnect": "drained",
}
WHOLE: Row = {**FULL, "end_reason": "completed", "disconnect": None}
UNKNOWN: Row = {"input_tokens": None, "output_tokens": None, "cost_sats": None, "usage_source": "none"}
EMPTY: Row = {**FULL, **UNKNOWN, "disconnect": "cancelled"}
NEVER_ANSWERED: Row = {**EMPTY, "success": False}


NEVER = Drain(at_once=0)


def asked(model: str, *, streaming: bool = True) -> dict[str, Any]:
    """A request."""
    return {"model": model, "stream": streaming, "messages": []}


async def closed(line: Line) -> float:
    """Wait until the provider's connection is closed from our side; returns the seconds that it took."""
    begun = time.monotonic()
    async with asyncio.timeout(SOON):
        await line.closed.wait()
    return time.monotonic() - begun


def check(row: Row, expected: Row) -> None:
    """The row says this, among other things."""
    assert {name: row[name] for name in expected} == expected


async def left(gate: Gateway, upstream: Provider, model: str, number: int = 0, **options: Any) -> Line:
    """Make a call and hang up once its first byte is here; returns what the provider has of it."""
    wire = await Wire.open(gate.url, asked(model), **options)
    await wire.until(1)
    line = await upstream.line(number)
    wire.hang_up()
    return line


@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("streaming", [True, False], ids=["stream", "plain"])
def test_drained(streaming: bool, reset: bool, tmp_path: Path) -> None:
    """A reply that is left half-way is read on to its usage, and its row counts in full."""

    async def main() -> Row:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            wire = await Wire.open(gate.url, asked("gated", streaming=streaming))
            await wire.until(1)
            wire.hang_up(reset=reset)
            await gate.until_drains(1)
            assert not upstream.lines[0].closed.is_set()
            upstream.gate.set()
            row = await gate.row()
            await gate.until_drains(0)
            return row

    async def checked() -> Row:
        row = await main()
        await no_task_left()
        return row

    row = asyncio.run(checked())
    check(row, {**FULL, "finish_reason": "stop", "streaming": streaming})


def test_plain_call_left_before_its_answer_is_drained(tmp_path: Path) -> None:
    """Whoever leaves a plain call before the answer pays for it: the provider works on it in any case."""

    async def main() -> Row:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            wire = await Wire.open(gate.url, asked("gated_before", streaming=False))
            await upstream.line()
            wire.hang_up()
            await gate.until_drains(1)
            upstream.gate.set()
            return await gate.row()

    check(asyncio.run(main()), {**FULL, "finish_reason": "stop"})


def test_stream_left_before_its_answer_is_cancelled(tmp_path: Path) -> None:
    """A stream that nobody has seen a byte of is not worth reading."""

    async def main() -> Row:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            wire = await Wire.open(gate.url, asked("silent"))
            line = await upstream.line()
            wire.hang_up()
            await closed(line)
            return await gate.row()

    row = asyncio.run(main())
    check(row, NEVER_ANSWERED)
    assert row["latency_ms"] is None
    assert row["stream_duration_ms"] is None


@pytest.mark.parametrize("model", ["endless", "stalls"])
def test_drain_has_an_end(model: str, tmp_path: Path) -> None:
    """A stream that doesn't end is read on for its `drain` seconds only, whether it says something or nothing."""

    async def main() -> tuple[Row, float]:
        short = {"disconnect": Drain(drain=0.3)}
        async with provider() as upstream, gateway(tmp_path, upstream.url, short) as gate:
            line = await left(gate, upstream, model)
            seconds = await closed(line)
            return await gate.row(), seconds

    row, seconds = asyncio.run(main())
    check(row, {**EMPTY, "finish_reason": None, "disconnect": "drain_cut"})
    assert seconds > 0.15


def test_cut_drain_keeps_what_was_counted(tmp_path: Path) -> None:
    """Of a stream that counts as it goes, a drain that was cut knows the last count, and that it is not the end."""

    async def main() -> Row:
        short = {"disconnect": Drain(drain=0.2)}
        async with provider() as upstream, gateway(tmp_path, upstream.url, short) as gate:
            await closed(await left(gate, upstream, "cumulative"))
            return await gate.row()

    row = asyncio.run(main())
    check(row, {"end_reason": "client_disconnected", "usage_source": "provider_partial", "disconnect": "drain_cut"})
    assert row["output_tokens"] > 1
    assert row["cost_sats"] > 1


def test_drained_reply_breaks_off(tmp_path: Path) -> None:
    """When the provider fails while it is read on, the client has still left first."""

    async def main() -> Row:
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"idle_timeout": 0.2}) as gate:
            await closed(await left(gate, upstream, "stalls"))
            return await gate.row()

    row = asyncio.run(main())
    assert (row["end_reason"], row["usage_source"]) == ("client_disconnected", "none")
    assert (row["error_message"], row["disconnect"]) == ("upstream_error: upstream_timeout", "drain_cut")


@pytest.mark.parametrize("model", ["endless", "stalls"])
def test_cancel_policy(model: str, tmp_path: Path) -> None:
    """With disconnect = "cancel" the provider sees its connection closed at once."""

    async def main() -> Row:
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"disconnect": "cancel"}) as gate:
            await closed(await left(gate, upstream, model))
            return await gate.row()

    check(asyncio.run(main()), EMPTY)


@pytest.mark.parametrize("caps", [Drain(at_once=2), Drain(per_end_user=1)], ids=["at_once", "per_end_user"])
def test_caps(caps: Drain, tmp_path: Path) -> None:
    """Over the cap of all drains, or of one user's, a call is cancelled at once; the others are read on."""

    async def main() -> list[Row]:
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"disconnect": caps}) as gate:
            users = ["alice", "bob", "alice"]
            for number, user in enumerate(users):
                await left(gate, upstream, "gated", number, headers={"x-user": user})
                await gate.until_drains(min(number + 1, 2))
            await closed(upstream.lines[2])
            assert [line.closed.is_set() for line in upstream.lines] == [False, False, True]
            upstream.gate.set()
            await gate.until_drains(0)
            rows = await gate.rows(3)
            # The places are free again.
            upstream.gate.clear()
            await left(gate, upstream, "gated", 3, headers={"x-user": "alice"})
            await gate.until_drains(1)
            upstream.gate.set()
            assert (await gate.rows(4))[3]["usage_source"] == "provider"
            return rows

    rows = asyncio.run(main())
    assert [row["end_user"] for row in rows] == ["alice", "bob", "alice"]
    for row, expected in zip(rows, [FULL, FULL, EMPTY], strict=True):
        check(row, expected)


def test_no_drains_at_all(tmp_path: Path) -> None:
    """A cap of 0 cancels whatever is left."""

    async def main() -> Row:
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"disconnect": NEVER}) as gate:
            await closed(await left(gate, upstream, "stalls"))
            return await gate.row()

    check(asyncio.run(main()), EMPTY)


def test_left_after_done(tmp_path: Path) -> None:
    """Whoever leaves after [DONE], as SDKs do, has had everything: the call is completed, and not a drain."""

    async def main() -> Row:
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"disconnect": NEVER}) as gate:
            wire = await Wire.open(gate.url, asked("done_and_open"))
            await wire.until(len(stream()))
            assert wire.body == stream()
            assert wire.clean is None
            wire.hang_up()
            line = await upstream.line()
            for _ in range(10):  # the hang-up is on its way, and has no effect to wait for
                await asyncio.sleep(0.01)
            assert not line.closed.is_set()
            upstream.gate.set()
            return await gate.row()

    check(asyncio.run(main()), WHOLE)


def test_left_after_everything(tmp_path: Path) -> None:
    """A connection that is kept open after the reply and closed later changes no row."""

    async def main() -> Row:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            wire = await Wire.open(gate.url, asked("good"))
            await wire.until(len(stream()))
            row = await gate.row()
            wire.hang_up()
            assert await gate.row() == row
            return row

    check(asyncio.run(main()), WHOLE)


def test_left_within_the_request(tmp_path: Path) -> None:
    """A client that leaves while it sends the body has made no call: no row, and nothing for the provider."""

    async def main() -> None:
        async with provider() as upstream, gateway(tmp_path, upstream.url) as gate:
            _, writer = await asyncio.open_connection("127.0.0.1", int(gate.url.rpartition(":")[2]))
            lines = (
                "POST /v1/chat/completions HTTP/1.1",
                "host: h",
                "content-type: application/json",
                "content-length: 99",
            )
            writer.write("\r\n".join([*lines, "", '{"model":']).encode())
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            wire = await Wire.open(gate.url, asked("good"))
            await wire.until()
            await gate.row()
            assert len(upstream.lines) == 1
        await no_task_left()

    asyncio.run(main())


def test_many_leave_at_once(tmp_path: Path) -> None:
    """Forty clients leave together: each has its row, no place is lost, and no task is left over."""

    async def main() -> list[Row]:
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"disconnect": Drain(at_once=10)}) as gate:
            wires = [await Wire.open(gate.url, asked("gated")) for _ in range(40)]
            await asyncio.gather(*(wire.until(1) for wire in wires))
            for number, wire in enumerate(wires):
                wire.hang_up(reset=number % 2 == 0)
            await gate.until_drains(10)
            await eventually(lambda: sum(line.closed.is_set() for line in upstream.lines) == 30, SOON)
            upstream.gate.set()
            await gate.until_drains(0)
            rows = await gate.rows(40)
        await no_task_left()
        return rows

    rows = asyncio.run(main())
    assert {row["end_reason"] for row in rows} == {"client_disconnected"}
    assert sorted(row["usage_source"] for row in rows) == ["none"] * 30 + ["provider"] * 10
    assert sorted(row["disconnect"] for row in rows) == ["cancelled"] * 30 + ["drained"] * 10


def test_drains_end_at_shutdown(tmp_path: Path) -> None:
    """A server that stops doesn't wait for drains; their rows are written all the same."""

    async def main() -> tuple[list[Row], float]:
        async with provider() as upstream:
            async with gateway(tmp_path, upstream.url) as gate:
                await left(gate, upstream, "endless")
                await gate.until_drains(1)
                begun = time.monotonic()
            seconds = time.monotonic() - begun
            await closed(upstream.lines[0])
        return ledger_rows(tmp_path), seconds

    rows, seconds = asyncio.run(main())
    assert [(row["end_reason"], row["disconnect"]) for row in rows] == [("client_disconnected", "drain_cut")]
    assert seconds < 10


def test_slow_reader(tmp_path: Path) -> None:
    """A client that doesn't read holds up the provider's stream, not the other clients, and may still leave."""

    async def main() -> list[Row]:
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"disconnect": "cancel"}) as gate:
            slow = await Wire.open(gate.url, asked("floods"))
            line = await upstream.line()
            async with asyncio.timeout(SOON * 3):
                await line.provider.stuck.wait()
            wire = await Wire.open(gate.url, asked("good"))
            await wire.until()
            assert wire.body == stream()
            slow.hang_up(reset=True)
            await closed(line)
            return await gate.rows(2)

    rows = asyncio.run(main())
    assert [row["end_reason"] for row in rows] == ["client_disconnected", "completed"]
