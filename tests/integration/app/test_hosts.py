"""Every way to use the gateway answers alike, and leaves the rest of its host alone."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx
from asgi_lifespan import LifespanManager
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from arbstr_asgi import Arbstr, ArbstrError, ArbstrMiddleware, Caller, DatabaseConfig
from arbstr_asgi.cli.server import serving
from tests.support.asgi_client import Call, call
from tests.support.fake_provider import JSON_TYPE, SSE_TYPE, USAGE, Line, plain, provider, stream
from tests.support.host_apps import HOMES, PAGES, Home, client_of, django_wrapped, mounted, route, starlette_middleware
from tests.support.raw_http_client import Wire, eventually
from tests.support.servers import RATES, Row, configured, ledger_rows, no_task_left

URL = "http://provider.invalid/v1"
LIFELESS = {"mounted_alone"}
WRAPPED = ["starlette_middleware", "fastapi_middleware", "django_wrapped"]
STREAM_REQUEST = b'{"model":"good","stream":true,"messages":[]}'
PLAIN_REQUEST = b'{ "messages": [],"model":"good" , "temperature":1.0}'
JSON = {"content-type": "application/json"}


def answer(request: httpx.Request) -> httpx.Response:
    """What the provider on a socket would say."""
    if b'"stream":true' not in request.content:
        return httpx.Response(200, headers=JSON_TYPE, content=plain())
    asked = b'"include_usage":true' in request.content
    return httpx.Response(200, headers=SSE_TYPE, content=stream(asked=asked))


class Upstream:
    """A provider of respx's, and the transport that leads to it."""

    def __init__(self) -> None:
        self.router = respx.MockRouter(assert_all_called=False)
        self.calls = self.router.post(f"{URL}/chat/completions").mock(side_effect=answer).calls
        self.transport = httpx.MockTransport(self.router.async_handler)


@asynccontextmanager
async def at_home(name: str, folder: Path, **facts: Any) -> AsyncIterator[tuple[Home, httpx.AsyncClient, Upstream]]:
    """One of the homes, started, with a client and a provider."""
    upstream = Upstream()
    home = HOMES[name](configured(folder, URL, facts.pop("provider", None), **facts), transport=upstream.transport)
    async with LifespanManager(home.app), client_of(home.app) as client:
        yield home, client, upstream


@pytest.mark.parametrize("name", HOMES)
def test_calls(name: str, tmp_path: Path) -> None:
    """A streaming and a plain call get the provider's bytes and have their rows, with the host's user in them."""

    async def main() -> None:
        async with at_home(name, tmp_path) as (home, client, upstream):
            headers = {**JSON, "x-user": "alice"}
            streamed = await client.post(home.path, content=STREAM_REQUEST, headers=headers)
            whole = await client.post(home.path, content=PLAIN_REQUEST, headers=headers)
            assert (streamed.status_code, streamed.content) == (200, stream())
            assert (whole.status_code, whole.content) == (200, plain())
            assert streamed.headers["content-type"] == SSE_TYPE["content-type"]
            assert streamed.headers["x-accel-buffering"] == "no"
            assert "content-length" not in streamed.headers
            assert whole.headers["content-type"] == "application/json"
            assert whole.headers["content-length"] == str(len(plain()))
            assert upstream.calls[0].request.content == STREAM_REQUEST.replace(
                b"{", b'{"stream_options":{"include_usage":true},', 1
            )
            assert upstream.calls[1].request.content == PLAIN_REQUEST
            await home.ledger.flush()
            rows = [*reversed(await home.ledger.rows())]
            ids = [reply.headers["x-arbstr-request-id"] for reply in (streamed, whole)]
            assert [row["correlation_id"] for row in rows] == ids
            for row, streaming in zip(rows, (True, False), strict=True):
                good(row, streaming=streaming)
        if name not in LIFELESS:
            await no_task_left()

    asyncio.run(main())


def good(row: Row, *, streaming: bool) -> None:
    """The row of a good call."""
    expected: Row = {
        "end_user": "alice",
        "streaming": streaming,
        "input_tokens": USAGE["prompt_tokens"],
        "output_tokens": USAGE["completion_tokens"],
        "cost_sats": Decimal("1.13"),
        "end_reason": "completed",
        "success": True,
    }
    assert {key: row[key] for key in expected} == expected


@pytest.mark.parametrize("name", HOMES)
def test_error(name: str, tmp_path: Path) -> None:
    """A request that can't be served gets the same error everywhere, without a row or a call to the provider."""

    async def main() -> None:
        async with at_home(name, tmp_path, provider={"models": ["good"]}) as (home, client, upstream):
            unknown = await client.post(home.path, content=b'{"model":"other"}', headers=JSON)
            assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "invalid_request_error")
            bad = await client.post(home.path, content=b'{"model":1}', headers=JSON)
            assert (bad.status_code, bad.json()["error"]["type"]) == (400, "invalid_request_error")
            assert not upstream.calls
            await home.ledger.flush()
            rows = await home.ledger.rows()
            assert [(row["model"], row["error_status"], row["attempts"]) for row in rows] == [("other", 404, 0)]

    asyncio.run(main())


@pytest.mark.parametrize("name", HOMES)
def test_over_a_socket(name: str, tmp_path: Path) -> None:
    """On a real server: the first bytes come before the last are there, and a hang-up is seen through the host."""

    async def main() -> None:
        async with provider() as upstream:
            home = HOMES[name](configured(tmp_path, upstream.url))
            async with serving(home.app) as url:
                asked = {"model": "gated", "stream": True, "messages": []}
                wire = await Wire.open(url, asked, path=home.path)
                await wire.until(1)
                assert wire.clean is None
                upstream.gate.set()
                whole = await wire.until()
                assert (whole.clean, whole.body) == (True, stream())
                left = await Wire.open(url, {**asked, "model": "silent"}, path=home.path)
                line: Line = await upstream.line(1)
                left.hang_up()
                await eventually(line.closed.is_set, 5.0)
                async with asyncio.timeout(5):
                    await ended(home, 2)
                rows = await home.ledger.rows()
                assert [row["end_reason"] for row in rows] == ["client_disconnected", "completed"]
        if name not in LIFELESS:
            await no_task_left()

    asyncio.run(main())


async def ended(home: Home, count: int) -> None:
    """Wait for so many finished rows."""
    while True:
        await home.ledger.flush()
        rows = await home.ledger.rows()
        if len(rows) == count and all(row["end_reason"] != "in_flight" for row in rows):
            return
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("name", WRAPPED)
def test_other_requests_pass(name: str, tmp_path: Path) -> None:
    """Another method, another path, a path below or above: all are the host's, with their bodies."""

    async def main() -> None:
        async with at_home(name, tmp_path) as (home, client, upstream):
            for method, path in (
                ("GET", home.path),
                ("PUT", home.path),
                ("POST", "/"),
                ("POST", f"{home.path}/"),
                ("POST", f"{home.path}/more"),
                ("POST", "/v1/chat"),
                ("POST", f"/llm{home.path}"),
                ("POST", home.path.upper()),
                ("POST", "/livez"),
            ):
                reply = await client.request(method, path, content=b'{"model":"good"}', headers=JSON)
                assert reply.status_code == 299, (method, path)
                assert reply.json() == {"host": path, "method": method, "body": '{"model":"good"}'}
                assert "x-arbstr-request-id" not in reply.headers
            assert not upstream.calls
            assert not await home.ledger.rows()

    asyncio.run(main())


def test_websocket_passes(tmp_path: Path) -> None:
    """A websocket at the very path is the host's."""
    home = starlette_middleware(configured(tmp_path, URL), transport=Upstream().transport)
    with TestClient(home.app) as client, client.websocket_connect(home.path) as websocket:
        websocket.send_text("hello")
        assert websocket.receive_text() == "host heard hello"


def test_nothing_of_the_host_is_changed(tmp_path: Path) -> None:
    """The host hears the very scope, receive and send of what isn't ours."""
    heard: list[tuple[Any, ...]] = []

    async def host(*given: Any) -> None:
        heard.append(given)

    async def main() -> None:
        app = ArbstrMiddleware(host, configured(tmp_path, URL, database=DatabaseConfig(path="ledger.db")))
        for scope in (
            {"type": "websocket", "path": "/v1/chat/completions"},
            {"type": "http", "method": "GET", "path": "/v1/chat/completions"},
            {"type": "http", "method": "POST", "path": "/v1/chat/completions", "root_path": "/v1"},
            {"type": "unheard of"},
        ):
            given: tuple[Any, ...] = (scope, object(), object())
            await app(*given)
            assert all(one is other for one, other in zip(heard[-1], given, strict=True))

    asyncio.run(main())
    assert len(heard) == 4
    assert not (tmp_path / "ledger.db").exists()


@pytest.mark.parametrize(
    ("root_path", "path", "ours"),
    [
        ("", "/v1/chat/completions", True),
        ("/proxy", "/proxy/v1/chat/completions", True),
        ("/proxy/", "/proxy/v1/chat/completions", True),
        ("/proxy", "/v1/chat/completions", True),  # servers that leave root_path out of the path
        ("/proxy", "/proxy/proxy/v1/chat/completions", False),
        ("/pro", "/proxy/v1/chat/completions", False),
        ("/v1", "/v1/chat/completions", False),
        ("/v1", "/v1/v1/chat/completions", True),
    ],
)
def test_root_path(root_path: str, path: str, *, ours: bool, tmp_path: Path) -> None:
    """The path is compared below root_path, whole segments only."""

    async def main() -> None:
        upstream = Upstream()
        app = ArbstrMiddleware(Starlette(routes=PAGES), configured(tmp_path, URL), transport=upstream.transport)
        async with LifespanManager(app):
            reply = await call(app, PLAIN_REQUEST, path=path, scope={"root_path": root_path})
            assert (reply.status == 200) == ours
            assert bool(upstream.calls) == ours

    asyncio.run(main())


def test_path_of_ones_own(tmp_path: Path) -> None:
    """`path=` moves the gateway, and gives the usual path back to the host."""

    async def main() -> None:
        upstream = Upstream()
        home = starlette_middleware(configured(tmp_path, URL), transport=upstream.transport, path="/api/chat")
        async with LifespanManager(home.app), client_of(home.app) as client:
            assert (await client.post("/api/chat", content=PLAIN_REQUEST, headers=JSON)).content == plain()
            assert (await client.post(home.path, content=PLAIN_REQUEST, headers=JSON)).status_code == 299

    asyncio.run(main())


def test_mounted_middleware(tmp_path: Path) -> None:
    """A host that is itself mounted, with the gateway around it, answers below the mount."""

    async def main() -> None:
        upstream = Upstream()
        inner = ArbstrMiddleware(Starlette(routes=PAGES), configured(tmp_path, URL), transport=upstream.transport)
        outer = Starlette(routes=[Mount("/tenant", inner)])
        async with client_of(outer) as client:
            reply = await client.post("/tenant/v1/chat/completions", content=PLAIN_REQUEST, headers=JSON)
            assert reply.content == plain()

    asyncio.run(main())
    assert len(ledger_rows(tmp_path)) == 1


@pytest.mark.parametrize("raises", [False, True], ids=["host starts", "host fails"])
def test_lifespan_around_the_host(raises: bool, tmp_path: Path) -> None:
    """The ledger is open while the host's lifespan runs, and closed when the host couldn't start."""
    seen: list[bool] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, str]]:
        seen.append(wrapped.ledger.is_open)
        if raises:
            raise RuntimeError("the host can't start")
        yield {"state": "of the host"}
        seen.append(wrapped.ledger.is_open)

    wrapped = ArbstrMiddleware(Starlette(routes=PAGES, lifespan=lifespan), configured(tmp_path, URL))

    async def main() -> None:
        if raises:
            with pytest.raises(RuntimeError, match="the host can't start"):
                async with LifespanManager(wrapped):
                    pass
        else:
            async with LifespanManager(wrapped) as manager:
                assert manager._state == {"state": "of the host"}
        assert not wrapped.ledger.is_open
        await no_task_left()

    asyncio.run(main())
    assert seen == ([True] if raises else [True, True])


@pytest.mark.parametrize("build", [django_wrapped, mounted])
def test_second_life(build: Any, tmp_path: Path) -> None:
    """An application that is stopped and started again, as tests of hosts do, works again."""

    async def main() -> None:
        home = build(configured(tmp_path, URL), transport=Upstream().transport)
        for count in (1, 2):
            async with LifespanManager(home.app), client_of(home.app) as client:
                assert (await client.post(home.path, content=PLAIN_REQUEST, headers=JSON)).status_code == 200
                await home.ledger.flush()
                assert len(await home.ledger.rows()) == count

    asyncio.run(main())


def test_first_requests_open_the_ledger_once(tmp_path: Path) -> None:
    """Without a lifespan, calls that come at once wait for one opening, and each has its row."""

    async def main() -> None:
        upstream = Upstream()
        llm = Arbstr(configured(tmp_path, URL), transport=upstream.transport)
        async with client_of(Starlette(routes=[Mount("/llm", llm)])) as client:
            path = "/llm/v1/chat/completions"
            replies = await asyncio.gather(*(client.post(path, content=PLAIN_REQUEST, headers=JSON) for _ in range(20)))
            assert {reply.status_code for reply in replies} == {200}

    asyncio.run(main())  # and its end is all that says that it is time to write
    assert [row["end_reason"] for row in ledger_rows(tmp_path)] == ["completed"] * 20


def test_lazy_opening_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without a lifespan and with a ledger that can't be opened, calls are refused loudly, never served unmetered."""
    (tmp_path / "ledger.db").mkdir()

    async def main() -> None:
        upstream = Upstream()
        llm = Arbstr(configured(tmp_path, URL), transport=upstream.transport)
        async with client_of(Starlette(routes=[Mount("/llm", llm)])) as client:
            reply = await client.post("/llm/v1/chat/completions", content=PLAIN_REQUEST, headers=JSON)
            assert (reply.status_code, reply.json()["error"]["code"]) == (503, "ledger_unavailable")
            assert not upstream.calls

    asyncio.run(main())
    assert [record.levelno for record in caplog.records if record.name == "arbstr_asgi"] == [logging.CRITICAL]


def test_route_refuses_first(tmp_path: Path) -> None:
    """Inside a route, the host's own checks come first, and a caller's tenant and tags are in the row."""
    from fastapi import Depends, FastAPI, HTTPException, Request, Response

    upstream = Upstream()
    llm = Arbstr(configured(tmp_path, URL), transport=upstream.transport)
    app = FastAPI(lifespan=llm.lifespan)
    finished: list[str] = []

    def user(request: Request) -> Any:
        if "x-user" not in request.headers:
            raise HTTPException(401, "who are you?")
        yield Caller(request.headers["x-user"], "acme", {"plan": "pro"})
        finished.append("dependency")

    guard = Depends(user)

    @app.post("/my/chat")
    async def chat(request: Request, caller: Caller = guard) -> Response:
        return await llm.respond(request, caller=caller)

    async def main() -> Row:
        async with LifespanManager(app), client_of(app) as client:
            refused = await client.post("/my/chat", content=PLAIN_REQUEST, headers=JSON)
            assert (refused.status_code, refused.json()) == (401, {"detail": "who are you?"})
            reply = await client.post("/my/chat", content=PLAIN_REQUEST, headers={**JSON, "x-user": "alice"})
            assert reply.content == plain()
            await llm.ledger.flush()
            (row,) = await llm.ledger.rows()
            return row

    row = asyncio.run(main())
    assert (row["end_user"], row["tenant"], row["tags"]) == ("alice", "acme", '{"plan": "pro"}')
    assert finished == ["dependency"]
    assert len(upstream.calls) == 1


def test_background_task_runs(tmp_path: Path) -> None:
    """A background task of the host's runs after the reply, also when the answer is ours."""
    from fastapi import BackgroundTasks, FastAPI, Request, Response

    llm = Arbstr(configured(tmp_path, URL), transport=Upstream().transport)
    app = FastAPI(lifespan=llm.lifespan)
    ran: list[str] = []

    @app.post("/my/chat")
    async def chat(request: Request, tasks: BackgroundTasks) -> Response:
        tasks.add_task(ran.append, "background")
        return await llm.respond(request)

    async def main() -> None:
        async with LifespanManager(app), client_of(app) as client:
            assert (await client.post("/my/chat", content=PLAIN_REQUEST, headers=JSON)).content == plain()

    asyncio.run(main())
    assert ran == ["background"]


def test_identify_refuses(tmp_path: Path) -> None:
    """An ArbstrError of `identify` is the answer; any other exception is a 500 that says nothing."""

    async def main() -> None:
        for error, status, code in (
            (ArbstrError(403, "no plan, no chat", code="no_plan"), 403, "no_plan"),
            (KeyError("secret"), 500, "identify_failed"),
        ):

            async def identify(scope: Any, error: Exception = error) -> None:
                raise error

            upstream = Upstream()
            app = ArbstrMiddleware(
                Starlette(), configured(tmp_path, URL), identify=identify, transport=upstream.transport
            )
            async with LifespanManager(app):
                reply = await Call(app, PLAIN_REQUEST).run()
                assert (reply.status, reply.error["code"]) == (status, code)
                assert b"secret" not in reply.body
                assert not upstream.calls
                assert not await app.ledger.rows()

    asyncio.run(main())


def test_hosts_client(tmp_path: Path) -> None:
    """A host's own httpx client leads to the provider, and stays open when we close."""

    async def main() -> None:
        upstream = Upstream()
        async with httpx.AsyncClient(transport=upstream.transport) as client:
            home = route(configured(tmp_path, URL, RATES), client=client)
            async with LifespanManager(home.app), client_of(home.app) as caller:
                assert (await caller.post(home.path, content=STREAM_REQUEST, headers=JSON)).content == stream()
            assert not client.is_closed
            assert len(upstream.calls) == 1

    asyncio.run(main())
