"""Routes that match a path exactly, and the answer to a request that none of them matches."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from arbstr_asgi.errors import ArbstrError

CORS_MAX_AGE = 600  # seconds for which a browser may remember the answer to a preflight


class ExactRoute(Route):
    """A route whose path ends where it ends: Starlette's pattern also matches a path with a line end behind it."""

    def __init__(self, path: str, endpoint: Callable[..., Any], *, methods: Sequence[str] = ("GET",)) -> None:
        super().__init__(path, endpoint, methods=list(methods))
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")


def cors(origins: Sequence[str]) -> list[Middleware]:
    """The middleware that lets web pages of these origins call; none where there are none.

    Without credentials of the browser's: a bearer token is sent by the page itself.
    """
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["*"],
            max_age=CORS_MAX_AGE,
        )
    ]


def http_error(request: Request, error: Exception) -> Response:
    """The response to an HTTPException in OpenAI's shape; for a path that is not served it says which are."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}."
    if error.status_code in (404, 405):
        message += f" Served here: {', '.join(_served(request))}."
    answer = ArbstrError(error.status_code, message, type="invalid_request_error", headers=error.headers)
    return Response(answer.to_json(), error.status_code, headers=answer.headers, media_type="application/json")


def _served(request: Request) -> list[str]:
    """Method and path of each route, below where the app is mounted."""
    root = str(request.scope.get("root_path", "")).rstrip("/")
    return [
        f"{method} {root}{route.path.replace(':path', '')}"
        for route in request.app.routes
        for method in sorted(route.methods - {"HEAD"})
    ]
