"""The gateway around any ASGI application."""

import databases
import httpx
from starlette.types import ASGIApp, Receive, Scope, Send

from arbstr_asgi.callers import Identify
from arbstr_asgi.config.config import Config
from arbstr_asgi.gateway import CHAT_PATH, Gateway
from arbstr_asgi.ledger import Ledger
from arbstr_asgi.lifespan import Lifespan


class ArbstrMiddleware:
    """Answers exactly `POST {path}` and passes everything else to `app` untouched, websocket and lifespan included.

    `identify(scope)`, sync or async, says who calls: a name, a `Caller` or None; raise `ArbstrError(403, …)` to
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
        database: databases.Database | None = None,
        table_prefix: str | None = None,
        migrate: bool | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        client: httpx.AsyncClient | None = None,
    ) -> None:
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
    def ledger(self) -> Ledger:
        """The rows."""
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
