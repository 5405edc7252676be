"""The servers under test: relays that do nothing else, and ours with a ledger."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import httpx
import uvicorn
from granian.constants import Interfaces
from granian.server.embed import Server as Granian

from arbstr_asgi import ArbstrMiddleware, Config, DatabaseConfig, Provider, Server
from arbstr_asgi.cli.server import serving
from arbstr_asgi.gateway.request_body import BodyChunks
from arbstr_asgi.providers.direct_client import DirectClient
from arbstr_asgi.providers.tls import TlsContexts
from harness.bare_transport import bare_transport

CHAT = "/v1/chat/completions"
CPU = "/cpu"
SERVERS = ("uvicorn", "uvicorn with httptools", "hypercorn", "granian")
PASSING = frozenset({b"content-type", b"content-length"})

Scope = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


class BareRelay:
    """The relay and nothing else: httpx over httpx-aiohttp, without a client."""

    def __init__(self, upstream: str) -> None:
        self._url = httpx.URL(f"{upstream}/chat/completions")
        self._transport = bare_transport()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one call on and its answer back."""
        body = b"".join([chunk async for chunk in BodyChunks(receive)])  # type: ignore[arg-type]
        headers = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
        timeout = {"connect": 10.0, "read": None, "write": None, "pool": None}
        request = httpx.Request("POST", self._url, headers=headers, content=body, extensions={"timeout": timeout})
        response = await self._transport.handle_async_request(request)
        try:
            passing = [(k.lower(), v) for k, v in response.headers.raw if k.lower() in PASSING]
            await send({"type": "http.response.start", "status": response.status_code, "headers": passing})
            assert isinstance(response.stream, httpx.AsyncByteStream)
            async for chunk in response.stream:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close its connections."""
        await self._transport.aclose()


class HttpxRelay:
    """The relay as most people write it, on httpx's own client."""

    def __init__(self, upstream: str) -> None:
        self._url = f"{upstream}/chat/completions"
        self._client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one call on and its answer back."""
        body = b"".join([chunk async for chunk in BodyChunks(receive)])  # type: ignore[arg-type]
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        async with self._client.stream("POST", self._url, content=body, headers=headers) as response:
            passing = [(k.lower(), v) for k, v in response.headers.raw if k.lower() in PASSING]
            await send({"type": "http.response.start", "status": response.status_code, "headers": passing})
            async for chunk in response.aiter_raw():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()


class DirectRelay:
    """The relay over our own connections: what is left when metering costs nothing."""

    def __init__(self, upstream: str) -> None:
        self._provider = Provider(name="p", url=upstream)
        self._client = DirectClient(TlsContexts())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one call on and its answer back."""
        body = b"".join([chunk async for chunk in BodyChunks(receive)])  # type: ignore[arg-type]
        headers = [(b"content-type", b"application/json"), (b"accept-encoding", b"identity")]
        reply = await self._client.send(self._provider, body, headers)
        try:
            passing = [(k, v) for k, v in reply.headers.raw if k in PASSING]
            await send({"type": "http.response.start", "status": reply.status, "headers": passing})
            while chunk := await reply.read():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await reply.aclose()

    async def close(self) -> None:
        """Close its connections."""
        await self._client.close()


RELAYS = {"bare": BareRelay, "httpx": HttpxRelay, "direct": DirectRelay}


class Host:
    """Tells the CPU that its process has used, and passes chat completions to a relay where there is one."""

    def __init__(self, relay: BareRelay | HttpxRelay | DirectRelay | None) -> None:
        self._relay = relay
        self.written: Callable[[], Awaitable[None]] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            if self._relay is not None:
                await self._relay.close()
            await send({"type": "lifespan.shutdown.complete"})
        elif self._relay is not None and scope["path"] == CHAT:
            await self._relay(scope, receive, send)
        else:
            if self.written is not None:
                await self.written()
            body = repr(time.process_time()).encode()
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})


def application(kind: str, upstream: str, database: str) -> Any:
    """A relay or ours; `strict` is ours with answers that wait for their rows. `database` is a URL."""
    if kind in RELAYS:
        return Host(RELAYS[kind](upstream))
    rates = {"input_rate": Decimal(10_000), "output_rate": Decimal(30_000)}
    config = Config(
        providers=(Provider(name="p", url=upstream, **rates),),
        server=Server(public=True),
        database=DatabaseConfig(url=database, durability="strict" if kind == "strict" else "relaxed"),
    )
    host = Host(None)
    ours = ArbstrMiddleware(host, config)  # type: ignore[arg-type]
    host.written = ours.ledger.flush
    return ours


async def be_server(kind: str, server: str, upstream: str, database: str, stop: asyncio.Event) -> None:
    """Serve until `stop`, or SIGTERM for those who have handlers of their own, and print the port."""
    app = application(kind, upstream, database)
    if server == "hypercorn":
        async with serving(app) as url:
            print(url.rpartition(":")[2], flush=True)
            await stop.wait()
        return
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        if server.startswith("uvicorn"):
            print(port, flush=True)
            parser = "httptools" if server.endswith("httptools") else "h11"
            settings = uvicorn.Config(
                app, http=parser, log_level="warning", access_log=False, timeout_graceful_shutdown=1
            )
            await uvicorn.Server(settings).serve(sockets=[listener])
            return
    granian = Granian(app, port=port, interface=Interfaces.ASGI, log_enabled=False)
    serves = asyncio.create_task(granian.serve())
    print(port, flush=True)
    await stop.wait()
    granian.stop()
    await asyncio.wait({serves}, timeout=5)
