"""The lifespan protocol around applications that do or don't speak it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from arbstr_asgi.gateway.lifespan import Lifespan

Log = list[str]


async def speaking(log: Log, receive: Any, send: Any) -> None:
    """A host that does it right."""
    for step in ("startup", "shutdown"):
        await receive()
        log.append(f"host {step}")
        await send({"type": f"lifespan.{step}.complete"})


async def failing_startup(log: Log, receive: Any, send: Any) -> None:
    """A host that can't start."""
    await receive()
    log.append("host startup")
    await send({"type": "lifespan.startup.failed", "message": "no"})


async def failing_shutdown(log: Log, receive: Any, send: Any) -> None:
    """A host that starts and can't stop."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    log.append("host shutdown")
    await send({"type": "lifespan.shutdown.failed", "message": "no"})


async def raising(log: Log, receive: Any, send: Any) -> None:
    """Django."""
    raise ValueError("only HTTP")


async def raising_later(log: Log, receive: Any, send: Any) -> None:
    """A host that raises once it has heard the startup."""
    await receive()
    raise ValueError("only HTTP")


async def returning(log: Log, receive: Any, send: Any) -> None:
    """A host that ignores the scope."""


async def leaving(log: Log, receive: Any, send: Any) -> None:
    """A host that ends after its startup."""
    await receive()
    await send({"type": "lifespan.startup.complete"})


async def raising_at_shutdown(log: Log, receive: Any, send: Any) -> None:
    """A host whose shutdown raises."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    raise RuntimeError("host bug")


START = ["server startup", "open", "host startup"]
CASES: list[tuple[Callable[..., Awaitable[None]], Log]] = [
    (speaking, [*START, "> startup.complete", "server shutdown", "host shutdown", "close", "> shutdown.complete"]),
    (failing_startup, [*START, "close", "> startup.failed"]),
    (
        failing_shutdown,
        [
            "server startup",
            "open",
            "> startup.complete",
            "server shutdown",
            "host shutdown",
            "close",
            "> shutdown.failed",
        ],
    ),
    *(
        (host, ["server startup", "open", "> startup.complete", "server shutdown", "close", "> shutdown.complete"])
        for host in (raising, raising_later, returning, leaving)
    ),
    (raising_at_shutdown, ["server startup", "open", "> startup.complete", "server shutdown", "close"]),
]


async def run(
    host: Callable[..., Awaitable[None]], *, fail: bool = False, cancel: bool = False, inside: bool = False
) -> Log:
    """The log of one run of the protocol."""
    log: Log = []
    messages = asyncio.Queue[dict[str, str]]()
    messages.put_nowait({"type": "lifespan.startup"})

    async def receive() -> dict[str, str]:
        message = await messages.get()
        log.append("server " + message["type"].rpartition(".")[2])
        return message

    async def send(message: Any) -> None:
        log.append("> " + message["type"].removeprefix("lifespan."))
        if message["type"] == "lifespan.startup.complete" and not cancel:
            messages.put_nowait({"type": "lifespan.shutdown"})

    async def start() -> None:
        log.append("open")
        if fail:
            raise RuntimeError("no database")

    async def stop() -> None:
        log.append("close")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await host(log, receive, send)

    task = asyncio.create_task(Lifespan(app, start, stop, inside=inside)({"type": "lifespan"}, receive, send))  # type: ignore[arg-type]
    if cancel:
        await asyncio.sleep(0.01)
        task.cancel()
    with suppress(RuntimeError, asyncio.CancelledError):
        await asyncio.wait_for(task, 2)
    return log


@pytest.mark.parametrize(("host", "expected"), CASES, ids=[host.__name__ for host, _ in CASES])
def test_order(host: Callable[..., Awaitable[None]], expected: Log) -> None:
    """We are open before the host hears of the startup, and closed before the server hears that it has stopped."""
    assert asyncio.run(run(host)) == expected


INSIDE: list[tuple[Callable[..., Awaitable[None]], Log]] = [
    (
        speaking,
        [
            *("server startup", "host startup", "open", "> startup.complete"),
            *("server shutdown", "close", "host shutdown", "> shutdown.complete"),
        ],
    ),
    (failing_startup, ["server startup", "host startup", "> startup.failed"]),
    *(
        (host, ["server startup", "open", "> startup.complete", "server shutdown", "close", "> shutdown.complete"])
        for host in (raising, returning, leaving)
    ),
    (raising_at_shutdown, ["server startup", "open", "> startup.complete", "server shutdown", "close"]),
]


@pytest.mark.parametrize(("host", "expected"), INSIDE, ids=[host.__name__ for host, _ in INSIDE])
def test_order_inside(host: Callable[..., Awaitable[None]], expected: Log) -> None:
    """What uses the host's own resources is open only while the host has them."""
    assert asyncio.run(run(host, inside=True)) == expected


def test_failing_start_inside() -> None:
    """When we can't open with what the host has opened, the host closes it and then the start fails."""
    log = asyncio.run(run(speaking, fail=True, inside=True))
    assert log == ["server startup", "host startup", "open", "host shutdown", "> startup.failed"]
    for host in (raising, returning):
        assert asyncio.run(run(host, fail=True, inside=True)) == ["server startup", "open", "> startup.failed"]
    assert asyncio.run(run(leaving, fail=True, inside=True))[-1] == "> startup.failed"


def test_failing_start() -> None:
    """When we can't open, the start fails and the host hears nothing."""
    assert asyncio.run(run(speaking, fail=True)) == ["server startup", "open", "> startup.failed"]


def test_cancelled() -> None:
    """A server that cancels the protocol instead of ending it still gets us closed, once."""
    assert asyncio.run(run(speaking, cancel=True)) == [*START, "> startup.complete", "close"]


def test_host_error_is_raised_on() -> None:
    """A host's own failure after its startup reaches the server."""

    async def main() -> None:
        messages = iter(["startup", "shutdown"])

        async def receive() -> dict[str, str]:
            return {"type": f"lifespan.{next(messages)}"}

        async def nothing(*args: Any) -> None: ...

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await raising_at_shutdown([], receive, send)

        await Lifespan(app, nothing, nothing)({"type": "lifespan"}, receive, nothing)  # type: ignore[arg-type]

    with pytest.raises(RuntimeError, match="host bug"):
        asyncio.run(main())
