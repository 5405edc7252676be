"""The ways to a provider: by proxy, to an authority of its own, on few connections; and what was never sent."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import uvloop

from arbstr_asgi import Arbstr, ArbstrMiddleware, ConfigError, Provider
from arbstr_asgi.cli.server import serving
from arbstr_asgi.errors import UpstreamError, UpstreamTimeout, UpstreamUnreachable
from arbstr_asgi.providers.client import HttpxClient
from tests.support.certificates import Authority
from tests.support.fake_provider import Provider as Upstream
from tests.support.fake_provider import plain, provider, stream
from tests.support.http_proxy import Proxy, proxy
from tests.support.raw_http_client import Wire, ask, eventually
from tests.support.servers import configured, free_port, gateway, no_task_left

ASKED = {"model": "good", "messages": []}
STREAMED = {"model": "good", "messages": [], "stream": True}
LOGIN, AS_IN_A_URL = "some@one:p:wor/d", "some%40one:p%3Awor%2Fd"
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


def run(main: Any, loop: str = "asyncio") -> Any:
    """Run a coroutine on this kind of loop."""
    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(main)


@asynccontextmanager
async def way(folder: Path, *, tls: bool = False, login: str = "") -> AsyncIterator[tuple[Upstream, Proxy, Authority]]:
    """A provider, a proxy, and who vouches for the provider."""
    authority = Authority(folder)
    async with provider(tls=authority.server() if tls else None) as upstream, proxy(login) as between:
        yield upstream, between, authority


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
def test_proxy(tls: bool, loop: str, tmp_path: Path) -> None:
    """Calls go through the proxy, with its user and password, and are answered as if it were not there."""

    async def main() -> list[str]:
        async with way(tmp_path, tls=tls, login=LOGIN) as (upstream, between, authority):
            facts = {"proxy": f"http://{AS_IN_A_URL}@127.0.0.1:{between.port}", "ca_file": str(authority.file)}
            async with gateway(tmp_path, upstream.url, facts) as it:
                assert (await ask(it.url, ASKED)).body == plain()
                assert (await ask(it.url, STREAMED)).body == stream()
                rows = await it.rows(2)
            assert [row["end_reason"] for row in rows] == ["completed"] * 2
            assert len(upstream.lines) == 2
            assert "proxy-authorization" not in upstream.lines[0].headers
            asked = [line.replace(upstream.url.partition("//")[2].partition("/")[0], "AT") for line in between.asked]
        await no_task_left()
        return asked

    wanted = "CONNECT AT" if tls else "POST http://AT/v1/chat/completions"
    assert run(main(), loop) == [wanted] * 2


async def failing(one: Provider, **options: Any) -> UpstreamError:
    """The error of a request to this provider."""
    upstream = HttpxClient([one], **options)
    try:
        with pytest.raises(UpstreamError) as caught:
            async with asyncio.timeout(10), await upstream.send(one, b'{"model":"good"}', []):
                pass
        assert caught.value.__context__ is None, "the transport's own error may hold a proxy's login"
        return caught.value
    finally:
        await upstream.close()


UNREACHED = {
    "no proxy there": ("http", "", None),
    "wrong password": ("http", "other:login", 200),
    "wrong password for a tunnel": ("https", "other:login", 200),
    "no tunnel": ("https", "a:b", 502),
}


@pytest.mark.parametrize("name", UNREACHED)
def test_proxy_that_refuses(name: str, tmp_path: Path) -> None:
    """A proxy that is not there, or does not want us, means that the provider was not reached."""
    scheme, login, status = UNREACHED[name]

    async def main() -> None:
        async with way(tmp_path, tls=scheme == "https", login="a:b") as (upstream, between, authority):
            port = between.port if status else free_port()
            between.status = status
            at = f"http://{login}@127.0.0.1:{port}" if login else f"http://127.0.0.1:{port}"
            error = await failing(Provider(name="p", url=upstream.url, proxy=at, ca_file=str(authority.file)))
            assert isinstance(error, UpstreamUnreachable)
            assert error.sent is False
            assert upstream.lines == []

    run(main())


def test_proxy_that_never_answers(tmp_path: Path) -> None:
    """A tunnel that is not made within the connect time-out is a time-out, and nothing was sent."""

    async def main() -> None:
        async with way(tmp_path, tls=True) as (upstream, between, authority):
            between.status = None
            at = f"http://127.0.0.1:{between.port}"
            one = Provider(name="p", url=upstream.url, proxy=at, ca_file=str(authority.file), connect_timeout=0.2)
            error = await failing(one)
            assert isinstance(error, UpstreamTimeout)
            assert error.sent is False

    run(main())


def test_provider_of_ones_own_authority(tmp_path: Path) -> None:
    """A provider is trusted for the authority that its `ca_file` holds, for no other, and not without."""

    async def main() -> None:
        stranger = Authority(tmp_path, "stranger")
        async with way(tmp_path, tls=True) as (upstream, _, authority):
            async with gateway(tmp_path, upstream.url, {"ca_file": str(authority.file)}) as it:
                assert (await ask(it.url, ASKED)).body == plain()
            for facts in ({}, {"ca_file": str(stranger.file)}):
                error = await failing(Provider(name="p", url=upstream.url, **facts))
                assert isinstance(error, UpstreamUnreachable)
            assert len(upstream.lines) == 1

    run(main())


@pytest.mark.parametrize(("content", "said"), [(None, "No such file"), ("no certificate", "certificates")])
def test_bad_ca_file(content: str | None, said: str, tmp_path: Path) -> None:
    """A `ca_file` that can't be read fails the start, and the message says which."""
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)

    async def main() -> None:
        arbstr = Arbstr(configured(tmp_path, "https://h/v1", {"ca_file": str(path)}))
        with pytest.raises(ConfigError) as caught:
            async with arbstr.lifespan():
                pass
        assert caught.value.message.startswith(f"providers[0].ca_file: {path}: ")
        assert said in caught.value.message

    run(main())


def test_max_connections(tmp_path: Path) -> None:
    """No more requests than that are open at a time; the next one is sent when one has ended."""

    async def main() -> None:
        async with provider() as upstream, gateway(tmp_path, upstream.url, {"max_connections": 2}) as it:
            wires = [await Wire.open(it.url, {**STREAMED, "model": "gated"}) for _ in range(3)]
            await upstream.line(1)
            await asyncio.sleep(0.2)
            assert len(upstream.lines) == 2
            upstream.gate.set()
            for wire in wires:
                assert (await wire.until()).body == stream()
            assert len(upstream.lines) == 3

    run(main())


def test_max_connections_are_not_waited_for_ever(tmp_path: Path) -> None:
    """Who waits longer than the connect time-out is told so; nothing was sent, and the others are served."""

    async def main() -> None:
        facts = {"max_connections": 1, "connect_timeout": 0.2}
        async with provider() as upstream, gateway(tmp_path, upstream.url, facts) as it:
            first = await Wire.open(it.url, {**STREAMED, "model": "gated"})
            await upstream.line()
            second = await ask(it.url, ASKED)
            assert (second.status, second.json["error"]["code"]) == (504, "upstream_timeout")
            upstream.gate.set()
            assert (await first.until()).body == stream()
            assert (await ask(it.url, ASKED)).body == plain()
            assert [row["end_reason"] for row in await it.rows(3)] == ["completed", "timeout", "completed"]
            assert len(upstream.lines) == 2
            one = Provider(name="p", url=upstream.url, max_connections=1, connect_timeout=0.1)
            upstream.gate.clear()
            way_out = HttpxClient([one])
            async with aclosing(await way_out.send(one, b'{"model":"gated","stream":true}', [])):
                with pytest.raises(UpstreamTimeout) as caught:
                    async with aclosing(await way_out.send(one, b'{"model":"good"}', [])):
                        pass
            assert caught.value.sent is False
            await way_out.close()

    run(main())


def test_bounds_are_a_provider_s_own(tmp_path: Path) -> None:
    """Two providers that are bounded alike don't take each other's connections; a hang-up gives back its own."""

    async def main() -> None:
        async with provider() as upstream:
            ones = [
                Provider(name=name, url=upstream.url, max_connections=1, connect_timeout=0.3) for name in ("a", "b")
            ]
            way_out = HttpxClient(ones)
            async with (
                aclosing(await way_out.send(ones[0], b'{"model":"gated","stream":true}', [])),
                aclosing(await way_out.send(ones[1], b'{"model":"good"}', [])) as reply,
            ):
                assert reply.status == 200
            async with aclosing(await way_out.send(ones[0], b'{"model":"good"}', [])) as reply:
                assert reply.status == 200
            await way_out.close()

    run(main())


@pytest.mark.parametrize("name", ["proxy", "ca_file", "max_connections"])
@pytest.mark.parametrize("handed", ["transport", "client"])
def test_of_no_effect(handed: str, name: str, tmp_path: Path) -> None:
    """Where the host hands over its transport or client, what that would not know of is refused at construction."""
    value: Any = {"proxy": "http://127.0.0.1:1", "ca_file": "x", "max_connections": 3}[name]
    config = configured(tmp_path, "http://h/v1", {name: value})
    transport = httpx.MockTransport(lambda request: httpx.Response(200))
    options: dict[str, Any] = {
        "transport": transport if handed == "transport" else None,
        "client": httpx.AsyncClient(transport=transport) if handed == "client" else None,
    }
    for build in (lambda: Arbstr(config, **options), lambda: ArbstrMiddleware(Arbstr(config), config, **options)):
        with pytest.raises(ConfigError, match=rf"^providers\[0\]\.{name}: has no effect with a transport or client"):
            build()


def raising(error: Exception, cause: Exception | None = None) -> Callable[[httpx.Request], httpx.Response]:
    """A transport that fails so."""

    def handle(request: httpx.Request) -> httpx.Response:
        raise error from cause

    return handle


SENT: list[tuple[Exception, Exception | None, bool]] = [
    (httpx.ConnectError("x"), None, False),
    (httpx.ConnectTimeout("x"), None, False),
    (httpx.PoolTimeout("x"), None, False),
    (httpx.ProxyError("x"), None, False),
    (httpx.UnsupportedProtocol("x"), None, False),
    (httpx.ReadTimeout("x"), None, True),
    (httpx.WriteTimeout("x"), None, True),
    (httpx.ReadError("x"), None, True),
    (httpx.WriteError("x"), None, True),
    (httpx.RemoteProtocolError("x"), None, True),
    (ValueError("x"), None, True),
    (httpx.ConnectTimeout("x"), aiohttp.ConnectionTimeoutError(), False),
    (httpx.ConnectTimeout("x"), aiohttp.ServerDisconnectedError(), True),
    (httpx.ConnectTimeout("x"), aiohttp.ClientOSError(), True),
    (httpx.ConnectTimeout("x"), aiohttp.ClientConnectionError(), True),
    (httpx.TimeoutException("x"), aiohttp.ServerTimeoutError(), True),
]


@pytest.mark.parametrize(("error", "cause", "sent"), SENT, ids=lambda value: type(value).__name__)
def test_sent(error: Exception, cause: Exception | None, sent: bool) -> None:
    """Only where it is certain that nothing has reached the provider does an error say so."""

    async def main() -> UpstreamError:
        transport = httpx.MockTransport(raising(error, cause))
        return await failing(Provider(name="p", url="http://h"), transport=transport)

    assert run(main()).sent is sent


@pytest.mark.parametrize(
    ("model", "sent"),
    [("closes_before_headers", True), ("resets_before_headers", True), ("garbage", True), ("nobody", False)],
)
def test_sent_over_sockets(model: str, sent: bool) -> None:
    """The same of our own transport: a provider that took the request and said nothing may have worked on it."""

    async def main() -> UpstreamError:
        async with provider() as upstream:
            url = upstream.url if model != "nobody" else f"http://127.0.0.1:{free_port()}"
            one = Provider(name="p", url=url)
            way_out = HttpxClient([one])
            body = b'{"model":"%b"}' % model.encode()
            with pytest.raises(UpstreamError) as caught:
                async with await way_out.send(one, body, []):
                    pass
            await way_out.close()
            return caught.value

    assert run(main()).sent is sent


def test_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that nobody knows is a provider that was not reached."""

    def unknown(*arguments: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error = run(failing(Provider(name="p", url="http://nobody.invalid")))
    assert isinstance(error, UpstreamUnreachable)
    assert error.sent is False


def test_closing(tmp_path: Path) -> None:
    """All ways are closed with the gateway, and made anew when it is opened again."""

    async def main() -> None:
        async with provider() as upstream, proxy() as between:
            facts = {"proxy": f"http://127.0.0.1:{between.port}"}
            arbstr = Arbstr(configured(tmp_path, upstream.url, facts))
            for _ in range(2):
                async with serving(arbstr) as url:
                    assert (await ask(url, ASKED)).body == plain()
            await eventually(lambda: len(between.asked) == 2)
        await no_task_left()

    run(main())
