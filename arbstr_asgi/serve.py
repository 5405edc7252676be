"""Runs applications on hypercorn; the only room that knows it, and imported only where a command needs it."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import hypercorn.run

from arbstr_asgi.app import Arbstr
from arbstr_asgi.config import Config
from arbstr_asgi.ledger import Ledger

try:
    import uvloop
except ImportError:  # Windows
    uvloop = None  # type: ignore[assignment]

BACKLOG = 1024
SECONDS_TO_TELL = 1.0  # for replies that were told to end to say so


def serve(config: Config, path: Path) -> int:
    """Serve until SIGTERM or SIGINT; running streams then get `server.grace` seconds. Returns the exit status."""
    asyncio.run(_try_ledger(config))
    if config.server.workers == 1:
        run(serve_here(Arbstr(config), config.server.listen, config.server.grace))
        return 0
    os.environ["ARBSTR_CONFIG"] = str(path.resolve())  # the workers are new processes that load it themselves
    settings = _settings(config.server.listen, config.server.grace)
    settings.workers = config.server.workers
    settings.worker_class = "asyncio" if uvloop is None else "uvloop"
    settings.application_path = "arbstr_asgi.asgi:app"
    return hypercorn.run.run(settings)


async def _try_ledger(config: Config) -> None:
    """Open and close the ledger once: it is then migrated, and what is wrong with it is said in one line."""
    ledger = Ledger(config.database.resolved_url, table_prefix=config.database.table_prefix)
    await ledger.open()
    await ledger.close()


def run(main: Any) -> None:
    """Run a coroutine on uvloop where there is one."""
    with asyncio.Runner(loop_factory=None if uvloop is None else uvloop.new_event_loop) as runner:
        runner.run(main)


async def serve_here(arbstr: Arbstr, listen: str, grace: float) -> None:
    """Serve in this process until SIGTERM or SIGINT. Raises OSError when it can't listen."""
    host, _, port = listen.rpartition(":")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    with _listening(host.strip("[]"), int(port)) as listener:
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.add_signal_handler(number, stop.set)
        await _serve(arbstr, listener, grace, stop)


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve `app` on a free port of loopback during the block; gives its base URL."""
    stop = asyncio.Event()
    with _listening("127.0.0.1", 0) as listener:
        task = asyncio.create_task(_serve(app, listener, 1.0, stop))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            stop.set()
            await task


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket that hypercorn is going to close."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    try:
        yield listener
    finally:
        listener.detach()


async def _serve(app: Any, listener: socket.socket, grace: float, stop: asyncio.Event) -> None:
    """Serve until `stop`, and then see to it that replies end within `grace` seconds.

    hypercorn alone waits for them without limit on asyncio from Python 3.12 on, where `Server.wait_closed` waits for
    connections; elsewhere it cancels them, which tells the client nothing.
    """

    async def stopped() -> None:
        await stop.wait()
        if isinstance(app, Arbstr):
            app.wind_down(grace)

    settings = _settings(f"fd://{listener.fileno()}", grace + SECONDS_TO_TELL)
    settings.errorlog = logging.getLogger("hypercorn.error")  # as the process has set it up; hypercorn adds its own
    await hypercorn.asyncio.serve(app, settings, shutdown_trigger=stopped)


def _settings(bind: str, grace: float) -> hypercorn.config.Config:
    settings = hypercorn.config.Config()
    settings.bind = [bind]
    settings.graceful_timeout = grace
    settings.accesslog = None
    return settings
