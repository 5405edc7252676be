"""The public ASGI applications: a middleware around any app, and a Starlette sub-app."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from arbstr_asgi.config.config import Config
from arbstr_asgi.gateway.auth import Caller, Identify, Identity, as_caller
from arbstr_asgi.gateway.lifespan import Lifespan
from arbstr_asgi.gateway.request_body import ClientDisconnected

if TYPE_CHECKING:
    import databases
    import httpx

    from arbstr_asgi.gateway.gateway import Gateway
    from arbstr_asgi.ledger.ledger import Ledger

CHAT_PATH = "/v1/chat/completions"


class ArbstrMiddleware:
    """Answers exactly `POST {path}` and passes everything else to `app` untouched, websocket and lifespan included.

    `identify(scope)`, sync or async, returns the caller: a name, a `Caller` or None; raise `ArbstrError(403, …)` to
    refuse. `database` is the host's own connected `databases.Database` (its tables are then prefixed `arbstr_` and
    migrated by `arbstr migrate`, or here with `migrate=True`); `transport` or `client` its own way to the provider.

        app.add_middleware(ArbstrMiddleware, config=config, identify=who)
    """

    def __init__(
        self,
        app: ASGIApp,
        config: Config,
        *,
        identify: Identify | None = None,
        path: str = CHAT_PATH,
        database: "databases.Database | None" = None,
        table_prefix: str | None = None,
        migrate: bool | None = None,
        transport: "httpx.AsyncBaseTransport | None" = None,
        client: "httpx.AsyncClient | None" = None,
    ) -> None:
        from arbstr_asgi.gateway.gateway import Gateway

        self.app = app
        self._path = path
        self._handed_over = database is not None
        self._gateway = Gateway(
            config,
            identify=identify,
            database=database,
            table_prefix=table_prefix,
            migrate=migrate,
            transport=transport,
            client=client,
        )

    @property
    def ledger(self) -> "Ledger":
        """The ledger, with its queries."""
        return self._gateway.ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        if scope["type"] == "lifespan":
            gateway, inside = self._gateway, self._handed_over
            await Lifespan(self.app, gateway.open, gateway.close, inside=inside)(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] == "POST" and _route(scope) == self._path:
            await self._gateway(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def _route(scope: Scope) -> str:
    """The path below the mount point (`scope["path"]` includes `root_path`)."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path[len(root) :] if root and path.startswith(f"{root}/") else path


class Arbstr:
    """Chat completions as an application of its own: serve it, mount it, or call it from a route.

        llm = Arbstr(config, identify=who)
        app = Starlette(routes=[Mount("/llm", llm)], lifespan=llm.lifespan)

    A mounted app receives no lifespan events, so pass `lifespan` to the host; without it the ledger opens on first use.
    The arguments are those of `ArbstrMiddleware`.
    """

    def __init__(
        self,
        config: Config,
        *,
        identify: Identify | None = None,
        database: "databases.Database | None" = None,
        table_prefix: str | None = None,
        migrate: bool | None = None,
        transport: "httpx.AsyncBaseTransport | None" = None,
        client: "httpx.AsyncClient | None" = None,
    ) -> None:
        from arbstr_asgi.api.health import HealthEndpoints
        from arbstr_asgi.api.paths import ExactRoute, cors, http_error
        from arbstr_asgi.api.routes import routes
        from arbstr_asgi.gateway.gateway import START_TIMEOUT, Gateway

        self._gateway = Gateway(
            config,
            identify=identify,
            database=database,
            table_prefix=table_prefix,
            migrate=migrate,
            transport=transport,
            client=client,
            measured=True,
        )
        self._app = Starlette(
            routes=[
                ExactRoute(CHAT_PATH, _Chat(self._gateway), methods=["POST"]),
                *routes(self._gateway),
                *HealthEndpoints(self._gateway, self.snapshot).routes(),
            ],
            exception_handlers={HTTPException: http_error},
            middleware=cors(config.server.cors_origins),
            lifespan=self.lifespan,
        )
        self.patience = START_TIMEOUT
        """Seconds for which a start waits for the database of the ledger, which may also connect later."""
        self._app.router.redirect_slashes = False  # a redirect would go where the client's Host header says

    @property
    def ledger(self) -> "Ledger":
        """The ledger, with its queries."""
        return self._gateway.ledger

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncIterator[None]:
        """Keep the ledger open for the block. Raises ConfigError or LedgerError where opening fails."""
        await self._gateway.open(self.patience)
        try:
            yield
        finally:
            await self._gateway.close()

    def wind_down(self, grace: float | None = None) -> None:
        """Tell the app that the server is shutting down; call it on the event loop.

        Draining for disconnected clients ends at once, running responses within `grace` seconds (default:
        `server.grace`).
        """
        self._gateway.wind_down(self._gateway.config.server.grace if grace is None else grace)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        await self._app(scope, receive, send)

    async def respond(self, request: Request, caller: Identity = None) -> Response:
        """The response to a chat completion that a route of the host has received and authorised.

        Neither `identify` nor the server's tokens are checked; `caller` is a name, a `Caller` or None. Status and
        headers of the response are those of the reply; changing them has no effect.
        """
        return _Answer(self._gateway, request, as_caller(caller))

    def snapshot(self) -> dict[str, Any]:
        """State of the ledger (see `Snapshot`) and of the drains.

        `uninjected` lists the models of providers that are asked without `stream_options`, since they refused it.
        """
        gateway = self._gateway
        facts = msgspec.structs.asdict(gateway.ledger.snapshot())
        return {
            **facts,
            "drains": gateway.drains.active,
            "drains_by_provider": dict(gateway.drains.by_provider),
            "uninjected": gateway.uninjected(),
        }


class _Chat:
    """Makes Starlette treat the gateway as an ASGI application rather than a function of a request."""

    def __init__(self, gateway: "Gateway") -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gateway(scope, receive, send)


class _Answer(Response):
    """A response whose body is streamed from the provider while it is sent."""

    def __init__(self, gateway: "Gateway", request: Request, caller: Caller) -> None:
        self.background = None
        self.status_code = 200
        self._gateway = gateway
        self._request = request
        self._caller = caller
        self.body = b""
        self.init_headers(None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._gateway.answer(scope, receive, send, _chunks(self._request), self._caller)
        if self.background is not None:
            await self.background()


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The request body, even if the host has read it already."""
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise ClientDisconnected from None
