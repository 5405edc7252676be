"""`app` for any ASGI server: `hypercorn arbstr_asgi.asgi:app`. ARBSTR_CONFIG names its TOML file (arbstr.toml)."""

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress

from starlette.types import Receive, Scope, Send

from arbstr_asgi.app import Arbstr
from arbstr_asgi.config.config import Config


def outlive_idle_workers(stopping: Callable[[], None]) -> None:
    """Keep a busy hypercorn worker alive until it has finished; `stopping` is called on SIGTERM.

    With several workers hypercorn's master sends SIGTERM to the rest as soon as the first has ended, and they have no
    handler for it. They learn of the shutdown through an event, so the signal need not end them; the master waits.
    """
    worker = multiprocessing.parent_process() is not None and "hypercorn" in sys.modules
    if not worker or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    loop = asyncio.get_running_loop()

    def terminated(number: int, frame: object) -> None:
        with suppress(RuntimeError):  # the loop has closed already
            loop.call_soon_threadsafe(stopping)

    signal.signal(signal.SIGTERM, terminated)  # unlike the loop's own handlers it stays when the loop closes


_arbstr = Arbstr(Config.load(os.environ.get("ARBSTR_CONFIG", "arbstr.toml")))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application."""
    if scope["type"] == "lifespan":
        outlive_idle_workers(_arbstr.wind_down)
    await _arbstr(scope, receive, send)
