"""The ways to use the gateway, each as an ASGI application that answers chat completions at a path of its own."""

from collections.abc import Callable
from typing import Annotated, Any

import httpx
from django.conf import settings
from fastapi import Body, Depends, FastAPI, Header, Request
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

from arbstr_asgi import Arbstr, ArbstrMiddleware, Config
from arbstr_asgi.ledger.ledger import Ledger

App = Any


class Home:
    """An application, the path of its chat completions, and its ledger."""

    def __init__(self, app: App, ledger: Callable[[], Ledger], path: str = "/v1/chat/completions") -> None:
        self.app = app
        self.path = path
        self._ledger = ledger

    @property
    def ledger(self) -> Ledger:
        """The rows; of a middleware that the host has yet to build, only after its start."""
        return self._ledger()


def who(scope: Any) -> str | None:
    """The end user is who the header `x-user` says."""
    return next((value.decode() for name, value in scope["headers"] if name == b"x-user"), None)


async def page(request: Request) -> Response:
    """Whatever comes, as the host has heard it."""
    return JSONResponse(
        {"host": request.url.path, "method": request.method, "body": (await request.body()).decode()}, 299
    )


async def socket(websocket: WebSocket) -> None:
    """Says what it hears, once."""
    await websocket.accept()
    await websocket.send_text(f"host heard {await websocket.receive_text()}")
    await websocket.close()


PAGES = [
    Route("/v1/chat/completions", page, methods=["GET", "POST", "PUT"]),
    Route("/{rest:path}", page, methods=["GET", "POST", "PUT"]),
    WebSocketRoute("/v1/chat/completions", socket),
]


def found(app: App) -> Ledger:
    """The ledger of the middleware in a stack that has been built."""
    at = app.middleware_stack
    while at is not None:
        if isinstance(at, ArbstrMiddleware):
            return at.ledger
        at = getattr(at, "app", None)
    raise AssertionError("no ArbstrMiddleware")


def starlette_middleware(config: Config, **options: Any) -> Home:
    """`add_middleware` of Starlette."""
    app = Starlette(routes=PAGES)
    app.add_middleware(ArbstrMiddleware, config=config, identify=who, **options)
    return Home(app, lambda: found(app))


def fastapi_middleware(config: Config, **options: Any) -> Home:
    """`add_middleware` of FastAPI."""
    app = FastAPI()
    app.router.routes.extend(PAGES)
    app.add_middleware(ArbstrMiddleware, config=config, identify=who, **options)
    return Home(app, lambda: found(app))


def django_wrapped(config: Config, **options: Any) -> Home:
    """Around Django's application, which speaks no lifespan."""
    if not settings.configured:
        settings.configure(
            ROOT_URLCONF="tests.support.django_urls", ALLOWED_HOSTS=["*"], SECRET_KEY="of tests", USE_TZ=True
        )
    import django
    from django.core.asgi import get_asgi_application

    django.setup()
    app = ArbstrMiddleware(get_asgi_application(), config, identify=who, **options)
    return Home(app, lambda: app.ledger)


def sub_app(config: Config, **options: Any) -> Home:
    """On its own."""
    llm = Arbstr(config, identify=who, **options)
    return Home(llm, lambda: llm.ledger)


def mounted(config: Config, **options: Any) -> Home:
    """Mounted, its lifespan handed over."""
    llm = Arbstr(config, identify=who, **options)
    app = Starlette(routes=[Mount("/llm", llm), *PAGES], lifespan=llm.lifespan)
    return Home(app, lambda: llm.ledger, "/llm/v1/chat/completions")


def mounted_alone(config: Config, **options: Any) -> Home:
    """Mounted, and nobody runs its lifespan."""
    llm = Arbstr(config, identify=who, **options)
    return Home(Starlette(routes=[Mount("/llm", llm), *PAGES]), lambda: llm.ledger, "/llm/v1/chat/completions")


async def current_user(x_user: Annotated[str | None, Header()] = None) -> str | None:
    """The host's own check."""
    return x_user


def route(config: Config, **options: Any) -> Home:
    """Inside a route of FastAPI, behind a dependency."""
    llm = Arbstr(config, **options)
    app = FastAPI(lifespan=llm.lifespan)

    @app.post("/my/chat/completions")
    async def chat(request: Request, user: Annotated[str | None, Depends(current_user)]) -> Response:
        return await llm.respond(request, caller=user)

    return Home(app, lambda: llm.ledger, "/my/chat/completions")


def route_with_body(config: Config, **options: Any) -> Home:
    """The same, where FastAPI has read the body already."""
    llm = Arbstr(config, **options)
    app = FastAPI(lifespan=llm.lifespan)

    @app.post("/my/chat/completions")
    async def chat(
        request: Request, asked: Annotated[dict[str, Any], Body()], user: Annotated[str | None, Depends(current_user)]
    ) -> Response:
        assert asked["model"]
        return await llm.respond(request, caller=user)

    return Home(app, lambda: llm.ledger, "/my/chat/completions")


def route_under_base_middleware(config: Config, **options: Any) -> Home:
    """The same, under a middleware of the host's that wraps both directions."""
    home = route_with_body(config, **options)

    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        response.headers["x-host"] = "was here"
        return response

    home.app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    return home


def under_base_middleware(config: Config, **options: Any) -> Home:
    """The gateway as a middleware, under such a middleware of the host's that has read the body."""
    home = starlette_middleware(config, **options)

    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        assert await request.body()
        return await call_next(request)

    home.app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    return home


HOMES: dict[str, Callable[..., Home]] = {
    home.__name__: home
    for home in (
        starlette_middleware,
        fastapi_middleware,
        django_wrapped,
        sub_app,
        mounted,
        mounted_alone,
        route,
        route_with_body,
        route_under_base_middleware,
        under_base_middleware,
    )
}


def client_of(app: App, **options: Any) -> httpx.AsyncClient:
    """A client that calls an application directly."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app, **options), base_url="http://host")
