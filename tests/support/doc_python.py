"""Runs the Python of a page: `python -m tests.support.doc_python FILE`, with the names that a reader has by then.

The gateway is open and has answered one call; `await` works as in an asynchronous function.
"""

import ast
import asyncio
import inspect
import sys
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from types import CodeType
from typing import Any

import databases
import httpx
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount

from arbstr_asgi import Arbstr, ArbstrMiddleware, Caller, Config, DatabaseConfig, Provider, Server

USAGE = {"prompt_tokens": 7, "completion_tokens": 17, "total_tokens": 24}


class User:
    """A host's user."""

    name = "alice"


def answer(request: httpx.Request) -> httpx.Response:
    """A provider's."""
    return httpx.Response(200, json={"object": "chat.completion", "model": "m", "choices": [], "usage": USAGE})


def names() -> dict[str, Any]:
    """What a page has before its first block."""
    config = Config(
        providers=[Provider(name="p", url="http://p/v1")],
        server=Server(public=True),
        database=DatabaseConfig(path="page.db"),
    )
    return {
        "app": Starlette(),
        "api": FastAPI(),
        "config": config,
        "llm": Arbstr(config, transport=httpx.MockTransport(answer)),
        "who": lambda scope: "alice",
        "current_user": User,
        "get_asgi_application": Starlette,
        **{one.__name__: one for one in (Arbstr, ArbstrMiddleware, Caller, Decimal, Depends, Mount, Request, Response)},
        **{one.__name__: one for one in (Starlette, User, asynccontextmanager)},
        "databases": databases,
    }


async def run(code: CodeType) -> None:
    """Run the code, and enter the lifespan that it has defined."""
    namespace = names()
    llm, app = namespace["llm"], namespace["app"]
    async with llm.lifespan():
        transport = httpx.ASGITransport(llm)
        async with httpx.AsyncClient(transport=transport, base_url="http://h") as client:
            (await client.post("/v1/chat/completions", json={"model": "m", "messages": []})).raise_for_status()
        await llm.ledger.flush()
        result = eval(code, namespace)
        if inspect.isawaitable(result):
            await result
    if "lifespan" in namespace:
        async with namespace["lifespan"](app):
            pass


asyncio.run(run(compile(Path(sys.argv[1]).read_text("utf-8"), "page", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)))
