"""A user's code, in all four ways of use. Nobody runs it: mypy reads it, in strict mode."""

from collections.abc import Awaitable, Callable, MutableMapping
from decimal import Decimal
from pathlib import Path
from typing import Any, assert_type

import databases
import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from arbstr_asgi import (
    Arbstr,
    ArbstrError,
    ArbstrMiddleware,
    Caller,
    Config,
    ConfigError,
    DatabaseConfig,
    Drain,
    LedgerError,
    Limits,
    Provider,
    Server,
    Token,
)

config = Config(
    providers=(
        Provider(
            name="openai",
            url="https://api.openai.com/v1",
            api_key="sk-secret",
            models=("gpt-4o",),
            input_rate=10_000,
            output_rate=Decimal("0.1"),
            base_fee=Decimal(1),
            disconnect="cancel",
            headers={"x-team": "a"},
            forward_headers=("x-trace",),
        ),
        Provider(name="other", url="http://h/v1", disconnect=Drain(drain=5.0, at_once=8, per_end_user=1)),
    ),
    server=Server(listen="0.0.0.0:80", tokens=(Token(name="alice", token="secret"),), grace=5.0),
    database=DatabaseConfig(url="postgresql+asyncpg://h/d"),
    limits=Limits(body_timeout=3.0),
    metering="require",
    response_headers="full",
    cost_comment=True,
)


def vault() -> str:
    return "sk-secret"


async def slow_vault() -> str:
    return "sk-secret"


for key in (vault, slow_vault, None):
    Provider(name="a", url="http://h", api_key=key, auth_header="api-key", proxy="http://p:1", max_connections=5)
Provider(name="b", url="http://h", api_key_file="key", ca_file="ca.pem")
assert_type(Config.load("arbstr.toml"), Config)
assert_type(Config.load(Path("arbstr.toml"), {"KEY": "value"}), Config)
assert_type(Config.parse({"providers": []}, {}), Config)
rate: Decimal | int | None = config.providers[0].input_rate


def by_name(scope: Scope) -> str:
    """The least that tells who calls."""
    return str(scope["user"])


async def by_session(scope: MutableMapping[str, Any]) -> Caller | None:
    """All that can be said of a caller, and a refusal."""
    if "user" not in scope:
        raise ArbstrError(401, "Please log in.", code="no_session", headers={"www-authenticate": "Session"})
    return Caller("alice", tenant="acme", tags={"plan": "free", "seats": 3})


# 1. As middleware.
async def host(scope: Scope, receive: Receive, send: Send) -> None:
    """Any ASGI application."""


application: ASGIApp = ArbstrMiddleware(host, config, identify=by_name, path="/chat")
wrapped = ArbstrMiddleware(Starlette(), config=config, identify=lambda scope: None)
starlette = Starlette(middleware=[Middleware(ArbstrMiddleware, config=config, identify=by_session)])
starlette.add_middleware(ArbstrMiddleware, config=config, identify=by_session, transport=httpx.AsyncHTTPTransport())

# 2. As a sub-app.
llm = Arbstr(config, identify=by_session, client=httpx.AsyncClient(), migrate=False)
mounted = Starlette(routes=[Mount("/llm", llm)], lifespan=llm.lifespan)
shared = Arbstr(config, database=databases.Database("sqlite:///x.db"), table_prefix="llm_", migrate=True)


# 3. Inside a route.
async def chat(request: Request) -> Response:
    """A route of the host, which knows its caller."""
    if request.user.is_admin:
        return await llm.respond(request)
    return await llm.respond(request, caller=Caller(end_user="bob"))


async def simple(request: Request) -> Response:
    """The same with a name."""
    response = await llm.respond(request, caller="bob")
    assert_type(response, Response)
    return response


routed = Starlette(routes=[Route("/chat", chat, methods=["POST"]), Route("/simple", simple)])


# 4. Standalone, with the lifespan and the rows in one's own hands.
async def main(serve: Callable[[ASGIApp], Awaitable[None]]) -> None:
    """Serve, then read and correct the rows."""
    try:
        async with llm.lifespan():
            await serve(llm)
            llm.wind_down(3.0)
            for row in await llm.ledger.rows(limit=10):
                assert_type(row, dict[str, Any])
            [one] = await llm.ledger.rows(correlation_id="id")
            assert_type(await llm.ledger.update_usage(one["correlation_id"], 1, None, Decimal("0.5")), int)
            llm.ledger.spawn_usage_update("id", 1, 2, None)
            await llm.ledger.flush()
            await wrapped.ledger.check()
            assert_type(llm.ledger.lost + llm.ledger.queued, int)
    except (ConfigError, LedgerError) as error:
        assert_type(error.message, str)
        assert_type(error.status_code, int)
