"""Connections of `arbstr serve`: how long an idle one is kept, on which addresses, and for pages of which origins."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from arbstr_asgi import Server
from arbstr_asgi.app import Arbstr
from arbstr_asgi.cli.server import _listening, _serve, serving
from arbstr_asgi.errors import ConfigError
from tests.support.asgi_client import Call, Provided, call, configured, good, running
from tests.support.fake_provider import provider
from tests.support.servers import configured as configured_for
from tests.support.servers import free_port

ORIGIN = "https://app.example"
needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6")
GET = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"


async def answers(host: str, port: int) -> bool:
    """Whether somebody answers there."""
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.write(GET)
    status = await reader.readline()
    writer.close()
    await writer.wait_closed()
    return b"200" in status


async def while_serving(folder: Path, addresses: list[str], keep_alive: float, main: Any) -> None:
    """Run `main` while a server listens on these addresses."""
    app = Arbstr(configured_for(folder, "http://127.0.0.1:1/v1"))
    stop = asyncio.Event()
    with _listening(addresses) as listeners:
        fds = [listener.detach() for listener in listeners]
        task = asyncio.create_task(_serve(app, fds, 1.0, stop, keep_alive))
        try:
            await main()
        finally:
            begun = time.monotonic()
            stop.set()
            await task
            assert time.monotonic() - begun < 3


@pytest.mark.parametrize(("keep_alive", "kept"), [(0.3, False), (75.0, True)])
def test_keep_alive(keep_alive: float, kept: bool, tmp_path: Path) -> None:
    """An idle connection is kept for as long as is set, and holds no shutdown up."""
    port = free_port()

    async def main() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):
            writer.write(GET)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0]))
        try:
            async with asyncio.timeout(1.5):
                assert await reader.read() == b""
            assert not kept
        except TimeoutError:
            assert kept
        writer.close()
        await writer.wait_closed()

    asyncio.run(while_serving(tmp_path, [f"127.0.0.1:{port}"], keep_alive, main))


@needs_ipv6
@pytest.mark.parametrize(
    ("addresses", "hosts"),
    [
        (["[::]:{port}"], {"127.0.0.1": True, "::1": True}),
        (["0.0.0.0:{port}", "[::]:{port}"], {"127.0.0.1": True, "::1": True}),
        (["127.0.0.1:{port}", "[::1]:{port}"], {"127.0.0.1": True, "::1": True, "127.0.0.2": False}),
        (["[::1]:{port}"], {"127.0.0.1": False, "::1": True}),
        (["[::]:{port}", "127.0.0.1:{other}"], {"127.0.0.1": True, "::1": True}),
    ],
)
def test_addresses(addresses: list[str], hosts: dict[str, bool], tmp_path: Path) -> None:
    """All addresses of a list are served, and `[::]` is IPv4 too, unless that has an address of its own."""
    port, other = free_port(), free_port()

    async def main() -> None:
        assert {host: await answers(host, port) for host in hosts} == hosts
        if any("{other}" in address for address in addresses):
            assert await answers("127.0.0.1", other)

    asyncio.run(while_serving(tmp_path, [address.format(port=port, other=other) for address in addresses], 5.0, main))


def test_the_address_that_is_taken_is_named() -> None:
    """Of several addresses the one that can't be had is in the error, and the others are free again."""
    free = free_port()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(OSError, match="in use") as caught, _listening([f"127.0.0.1:{free}", address]):
            pass
    assert caught.value.filename == address
    socket.create_server(("127.0.0.1", free)).close()


@pytest.mark.parametrize("listen", [(), ("a:1", "a:1")])
def test_no_addresses(listen: tuple[str, ...]) -> None:
    """A list of none, or of the same twice, is refused."""
    with pytest.raises(ConfigError, match="listen"):
        Server(listen=listen)


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example/",
        "app.example",
        "https://",
        "https://*.example",
        "null",
        "",
        "https://u@h",
        "https://h/a",
        "*.b",
    ],
)
def test_no_origins(origin: str) -> None:
    """What no browser sends as an origin is refused."""
    with pytest.raises(ConfigError, match="cors_origins"):
        Server(cors_origins=[origin])


PATHS = [
    ("POST", "/v1/chat/completions"),
    ("GET", "/v1/stats"),
    ("GET", "/v1/models"),
    ("GET", "/livez"),
    ("GET", "/none"),
]


def asked(folder: Path, server: Server, method: str, path: str, **headers: str) -> Call:
    """One request with these headers."""

    async def main() -> Call:
        async with running("sub-app", configured(folder, server=server), Provided(good)) as app:
            given = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
            return await call(
                app, b'{"model":"m"}' if method == "POST" else b"", method=method, path=path, headers=given
            )

    return asyncio.run(main())


@pytest.mark.parametrize(("method", "path"), PATHS)
def test_pages_of_an_origin(method: str, path: str, tmp_path: Path) -> None:
    """Preflight, answer and error of every endpoint let the page read them; no other page may."""
    server = Server(public=True, cors_origins=["https://APP.example", "http://localhost:5173"])
    for origin, allowed in ((ORIGIN, True), ("http://localhost:5173", True), ("https://other.example", False)):
        before = asked(
            tmp_path,
            server,
            "OPTIONS",
            path,
            origin=origin,
            access_control_request_method=method,
            access_control_request_headers="authorization,content-type,x-arbstr-policy",
        )
        assert before.status == (200 if allowed else 400)
        reply = asked(tmp_path, server, method, path, origin=origin)
        for each in (before, reply):
            assert each.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert "access-control-allow-credentials" not in each.headers
        if allowed:
            assert method in before.headers["access-control-allow-methods"]
            assert "authorization" in before.headers["access-control-allow-headers"]
            assert "x-arbstr-policy" in before.headers["access-control-allow-headers"]
            assert reply.headers["access-control-expose-headers"] == "*"
        assert "Origin" in reply.headers["vary"]


def test_pages_of_any_origin(tmp_path: Path) -> None:
    """`*` is any origin."""
    reply = asked(tmp_path, Server(public=True, cors_origins=["*"]), "GET", "/v1/models", origin="https://x.example")
    assert reply.headers["access-control-allow-origin"] == "*"


def test_the_guard_stays(tmp_path: Path) -> None:
    """A preflight needs no token, what follows it does, and the page may read that it was refused."""
    server = Server(auth_token="t", cors_origins=[ORIGIN])
    before = asked(tmp_path, server, "OPTIONS", "/v1/models", origin=ORIGIN, access_control_request_method="GET")
    assert before.status == 200
    reply = asked(tmp_path, server, "GET", "/v1/models", origin=ORIGIN)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (401, ORIGIN)


def test_without_origins_nothing_is_said(tmp_path: Path) -> None:
    """Where no origin is configured, no page may call."""
    before = asked(
        tmp_path, Server(public=True), "OPTIONS", "/v1/models", origin=ORIGIN, access_control_request_method="GET"
    )
    assert before.status == 405
    reply = asked(tmp_path, Server(public=True), "GET", "/v1/models", origin=ORIGIN)
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_streams_of_a_page(tmp_path: Path) -> None:
    """A page's stream comes event by event over a socket, with the header that lets it be read."""

    async def main() -> None:
        async with provider() as it:
            config = configured_for(tmp_path, it.url, server=Server(public=True, cors_origins=[ORIGIN]))
            async with serving(Arbstr(config)) as url:
                body = json.dumps({"model": "good", "stream": True, "messages": []}).encode()
                reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
                head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\norigin: {ORIGIN}\r\nconnection: close\r\n"
                head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                got = await reader.read()
                writer.close()
        assert f"access-control-allow-origin: {ORIGIN}".encode() in got.lower()
        assert b"[DONE]" in got

    asyncio.run(main())
