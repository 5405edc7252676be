"""Starlette: the gateway as a sub-app below /llm, for the holders of its own bearer tokens."""

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from arbstr_asgi import Arbstr, Config, DatabaseConfig, Provider, Server, Token

TOKENS = {"alice": "alice-token", "bob": "bob-token"}  # a real app takes them from its environment

config = Config(
    providers=(
        Provider(
            name="upstream",
            url=os.environ.get("UPSTREAM_URL", "http://127.0.0.1:8080/v1"),  # arbstr serve --mock
            api_key=os.environ.get("UPSTREAM_KEY") or None,
        ),
    ),
    # Each holder is an end user of the ledger. The tokens stay here: no provider sees them.
    server=Server(tokens=tuple(Token(name=name, token=token) for name, token in TOKENS.items())),
    database=DatabaseConfig(url=os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///starlette_mount.db")),
)
llm = Arbstr(config)


async def home(request: Request) -> PlainTextResponse:
    """A page of the host's."""
    return PlainTextResponse("The chat completions are at POST /llm/v1/chat/completions.\n")


# A mounted app hears no lifespan, so the host takes its lifespan over. A host that has one of its own enters
# `llm.lifespan(app)` inside it.
app = Starlette(routes=[Route("/", home), Mount("/llm", llm)], lifespan=llm.lifespan)
