"""Runs ASGI applications on hypercorn; imported only by the commands that need it."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hypercorn.asyncio
import hypercorn.config
import msgspec

from arbstr_asgi.app import Arbstr
from arbstr_asgi.cli.supervisor import STOP_SIGNALS, Supervisor
from arbstr_asgi.config.api_keys import key_sources
from arbstr_asgi.config.config import Config
from arbstr_asgi.config.loading import read_toml
from arbstr_asgi.config.settings import Server
from arbstr_asgi.config.validation import check_listen
from arbstr_asgi.config.warnings import key_warnings
from arbstr_asgi.errors import ArbstrError, ConfigError
from arbstr_asgi.telemetry.multiprocess import multiprocess_metrics

try:
    import uvloop
except ImportError:  # Windows
    uvloop = None  # type: ignore[assignment]
if sys.platform != "win32":
    import resource

logger = logging.getLogger("arbstr_asgi")

BACKLOG = 1024
KEEP_ALIVE = Server().keep_alive
START_TIMEOUT = 2.0  # for the ledger's database before the start; it may come later
WORKER_START_TIMEOUT = 0.5  # the same once clients may have connected, and wait
ERROR_TIMEOUT = 1.0  # for cancelled responses to send their error
CLOSE_TIMEOUT = 70.0  # for a worker, beyond the grace; hypercorn gives an application's shutdown 60


def prepare(level: int = logging.INFO) -> None:
    """Configure logging to stderr from `level` on, and raise the limit of open files to the hard limit."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("arbstr_asgi", "hypercorn.error"):
        logging.getLogger(name).setLevel(level)
    logging.getLogger("hypercorn.error").addFilter(_shorten_traceback)
    if sys.platform != "win32":
        _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(ValueError, OSError):  # where the kernel has a limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))


def _shorten_traceback(record: logging.LogRecord) -> bool:
    """A log filter: one line instead of a traceback for an error that is raised only to abort the connection."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, ArbstrError):
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args, record.exc_info = "a reply was broken off: %s", (error.summary(),), None
    return True


def overridden(config: Config, listen: Sequence[str], workers: int | None) -> Config:
    """`config` with the options of the command line. Raises ConfigError."""
    overrides = {name: value for name, value in (("listen", listen), ("workers", workers)) if value}
    server = msgspec.structs.replace(config.server, **overrides)
    check_listen(server.addresses)
    return msgspec.structs.replace(config, server=server)


def serve(config: Config, path: Path) -> int:
    """Serve until SIGTERM or SIGINT; running streams then get `server.grace` seconds. Returns the exit status.

    `path` is the config that workers load. Raises ConfigError or LedgerError, and OSError when the address can not be
    bound.
    """
    server = config.server
    if server.workers > 1 and sys.platform == "win32":
        raise ConfigError("server.workers: more than one needs a POSIX system")
    for warning in key_warnings(config, key_sources(read_toml(path), os.environ), path):
        logger.warning("%s", warning)
    asyncio.run(_check_ledger(config))
    if server.workers == 1:
        run(serve_here(Arbstr(config), server.addresses, server.grace, server.keep_alive))
        return 0
    with _listening(server.addresses) as listeners:
        command, stop_timeout = _command(config, path), server.grace + CLOSE_TIMEOUT
        with multiprocess_metrics() as metrics:
            workers = Supervisor(
                command, listeners, server.workers, stop_timeout, environ=metrics.environ, on_ended=metrics.ended
            )
            return workers.run()


def _command(config: Config, path: Path) -> Sequence[str]:
    """The command of a worker, which loads the config itself: keys must not be visible in `ps`. -P as in `arbstr`."""
    overrides = (",".join(config.server.addresses), str(config.server.workers))
    return [sys.executable, "-P", "-m", "arbstr_asgi.cli.worker", str(path.absolute()), *overrides]


async def _check_ledger(config: Config) -> None:
    """Open and close the ledger once before workers start: migrates it, and fails with a one-line error."""
    ledger = Arbstr(config).ledger
    await ledger.open(START_TIMEOUT)
    await ledger.close()


def run(main: Any) -> None:
    """Run a coroutine, on uvloop where it is installed."""
    with asyncio.Runner(loop_factory=None if uvloop is None else uvloop.new_event_loop) as runner:
        runner.run(main)


async def serve_here(arbstr: Arbstr, addresses: Sequence[str], grace: float, keep_alive: float) -> None:
    """Serve in this process until SIGTERM or SIGINT. Raises OSError when an address can not be bound."""
    with _listening(addresses) as listeners:
        await serve_on(arbstr, [listener.detach() for listener in listeners], grace, keep_alive)


async def serve_on(
    arbstr: Arbstr, listeners: Sequence[int], grace: float, keep_alive: float, *, alive: int | None = None
) -> None:
    """Serve on listening sockets until SIGTERM or SIGINT, or until the pipe `alive` is closed; closes the sockets.

    An idle connection is kept for `keep_alive` seconds.
    """
    arbstr.patience = WORKER_START_TIMEOUT
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: int, frame: object) -> None:
        loop.call_soon_threadsafe(stop.set)

    for number in STOP_SIGNALS:
        signal.signal(number, on_signal)
    if alive is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        loop.add_reader(alive, _orphaned, alive, stop)
    gc.freeze()  # imported objects are never garbage; collecting them took 5 % of a busy server
    try:
        await _serve(arbstr, listeners, grace, stop, keep_alive)
    finally:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # an echo must not strike a process that ends by itself


def _orphaned(alive: int, stop: asyncio.Event) -> None:
    asyncio.get_running_loop().remove_reader(alive)
    logger.warning("the supervisor has gone; ending")
    stop.set()


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """Serve `app` on a free port of loopback during the block; yields its base URL."""
    stop = asyncio.Event()
    with _listening(["127.0.0.1:0"]) as (listener,):
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        task = asyncio.create_task(_serve(app, [listener.detach()], 1.0, stop))
        try:
            yield url
        finally:
            stop.set()
            await task


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    return host.strip("[]"), int(port)


@contextlib.contextmanager
def _listening(addresses: Sequence[str]) -> Iterator[list[socket.socket]]:
    """A listening socket for each address, closed at the end. Raises OSError with the address as its `filename`.

    `[::]` takes IPv4 as well, as on most systems, unless another address is of IPv4 and has the same port.
    """
    places = [_address(address) for address in addresses]
    with contextlib.ExitStack() as stack:
        listeners = []
        for address, (host, port) in zip(addresses, places, strict=True):
            ipv6 = ":" in host
            alone = not any(other == port and ":" not in name for name, other in places)
            both = ipv6 and not host.strip("0:") and alone and socket.has_dualstack_ipv6()
            family = socket.AF_INET6 if ipv6 else socket.AF_INET
            try:
                listener = socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
            except OSError as error:
                error.filename = address
                raise
            listeners.append(stack.enter_context(listener))
        yield listeners


async def _serve(
    app: Any, listeners: Sequence[int], grace: float, stop: asyncio.Event, keep_alive: float = KEEP_ALIVE
) -> None:
    """Serve until `stop` is set, then end responses within `grace` seconds.

    hypercorn alone waits for them without limit on asyncio from Python 3.12 on, where `Server.wait_closed` waits for
    connections; elsewhere it cancels them, without an error for the client.
    """

    async def stopped() -> None:
        await stop.wait()
        if isinstance(app, Arbstr):
            app.wind_down(grace)

    settings = hypercorn.config.Config()
    settings.bind = [f"fd://{listener}" for listener in listeners]
    settings.keep_alive_timeout = keep_alive
    settings.backlog = BACKLOG
    settings.graceful_timeout = grace + ERROR_TIMEOUT
    settings.accesslog = None
    settings.errorlog = logging.getLogger("hypercorn.error")  # as the process has set it up; hypercorn adds its own
    await hypercorn.asyncio.serve(app, settings, shutdown_trigger=stopped)
