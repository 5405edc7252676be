"""Litestar with metered chat completions in front of it."""

import os
from collections.abc import MutableMapping
from typing import Any

from litestar import Litestar, get

from arbstr_asgi import ArbstrError, ArbstrMiddleware, Config, DatabaseConfig, Provider

TOKENS = {b"Bearer alice-token": "alice", b"Bearer bob-token": "bob"}  # a real app asks its own login

config = Config(
    providers=[
        Provider(
            name="upstream",
            url=os.environ.get("UPSTREAM_URL", "http://127.0.0.1:8080/v1"),  # arbstr serve --mock
            api_key=os.environ.get("UPSTREAM_KEY"),
        )
    ],
    database=DatabaseConfig(url=os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///litestar_app.db")),
)


def who(scope: MutableMapping[str, Any]) -> str:
    """The end user of a call."""
    user = TOKENS.get(dict(scope["headers"]).get(b"authorization", b""))
    if user is None:
        raise ArbstrError(401, "Log in first.", type="authentication_error")
    return user


@get("/")
async def home() -> str:
    """A page of the host's."""
    return "The chat completions are at POST /v1/chat/completions.\n"


# Around the whole application, so that the lifespan passes through and the ledger opens and closes with it.
app = ArbstrMiddleware(Litestar([home]), config, identify=who)
