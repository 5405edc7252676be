"""`app` for any ASGI server: `hypercorn arbstr_asgi.asgi:app`. ARBSTR_CONFIG names its TOML file (arbstr.toml)."""

import os

from starlette.types import Receive, Scope, Send

from arbstr_asgi.app import Arbstr
from arbstr_asgi.config.config import Config
from arbstr_asgi.workers import outlive_idle_workers

_arbstr = Arbstr(Config.load(os.environ.get("ARBSTR_CONFIG", "arbstr.toml")))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application."""
    if scope["type"] == "lifespan":
        outlive_idle_workers(_arbstr.wind_down)
    await _arbstr(scope, receive, send)
