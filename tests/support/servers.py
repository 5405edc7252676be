"""Gateways on real sockets: inside this process, or as the server programs that people use."""

import asyncio
import json
import os
import re
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import httpx

from arbstr_asgi import Arbstr, Caller, Config, DatabaseConfig, Provider, Server
from arbstr_asgi.cli.server import serving
from tests.support.databases import migrated_file
from tests.support.raw_http_client import eventually

SECONDS = 20.0  # more than anything here takes, on a busy machine too
RATES: dict[str, Any] = {"input_rate": 10_000, "output_rate": 30_000, "base_fee": 1}
Row = dict[str, Any]


def who(scope: Mapping[str, Any]) -> Caller:
    """The end user is who the header `x-user` says."""
    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
    return Caller(headers.get("x-user"))


def configured(folder: Path, url: str, provider: Mapping[str, Any] | None = None, **facts: Any) -> Config:
    """One provider at `url`, and a ledger in `folder`."""
    facts.setdefault("server", Server(public=True))
    if "database" not in facts:
        facts["database"] = DatabaseConfig(path=migrated_file(folder / "ledger.db"))
    return Config(providers=(Provider(**{"name": "p", "url": url, **RATES, **(provider or {})}),), **facts)


class Gateway:
    """A gateway that runs in this process."""

    def __init__(self, arbstr: Arbstr, url: str) -> None:
        self.arbstr = arbstr
        self.url = url

    async def rows(self, count: int = 1) -> list[Row]:
        """The rows of `count` calls, oldest first, once all are finished."""
        async with asyncio.timeout(SECONDS):
            while True:
                await self.arbstr.ledger.flush()
                found = [*reversed(await self.arbstr.ledger.rows())]
                if len(found) >= count and all(row["end_reason"] != "in_flight" for row in found):
                    assert len(found) == count
                    return found
                await asyncio.sleep(0.01)

    async def row(self) -> Row:
        """The only row."""
        return (await self.rows())[0]

    async def until_drains(self, count: int) -> None:
        """Return once so many calls are read on for clients that have left."""
        await until_drains(self.url, count)


@asynccontextmanager
async def gateway(
    folder: Path,
    url: str,
    provider: Mapping[str, Any] | None = None,
    **facts: Any,
) -> AsyncIterator[Gateway]:
    """A gateway in front of the provider at `url`, on hypercorn in this process."""
    arbstr = Arbstr(configured(folder, url, provider, **facts), identify=who)
    async with serving(arbstr) as at:
        yield Gateway(arbstr, at)


async def no_task_left() -> None:
    """Only the test's own task is there, a moment after everything has been closed."""
    await eventually(lambda: len(asyncio.all_tasks()) == 1)


async def until_drains(url: str, count: int) -> None:
    """Return once the gateway at `url` reads on so many calls for clients that have left."""
    # A connection for each question: of several workers, each has its own answer.
    async with (
        httpx.AsyncClient(trust_env=False, headers={"connection": "close"}) as client,
        asyncio.timeout(SECONDS),
    ):
        while True:
            if (await client.get(f"{url}/readyz")).json()["drains"] == count:
                return
            await asyncio.sleep(0.01)


def free_port() -> int:
    """A port of loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def write_toml(
    folder: Path,
    url: str,
    port: int,
    *,
    workers: int = 1,
    grace: float = 1.0,
    database: Mapping[str, Any] | None = None,
    provider: Mapping[str, Any] | None = None,
    more: str = "",
) -> Path:
    """A configuration file with `more` at its end; returns its path."""
    path = folder / "arbstr.toml"
    server = {"listen": f"127.0.0.1:{port}", "public": True, "workers": workers, "grace": grace}
    sections = {
        "[server]": server,
        "[database]": database or {"path": str(folder / "ledger.db")},
        "[[providers]]": {"name": "p", "url": url, **RATES, **(provider or {})},
    }
    lines = [
        line
        for section, values in sections.items()
        for line in (section, *(f"{name} = {json.dumps(value)}" for name, value in values.items()), "")
    ]
    path.write_text("\n".join(lines) + more)
    return path


def ledger_rows(folder: Path) -> list[Row]:
    """The rows on disk, oldest first, whoever has written them."""
    with closing(sqlite3.connect(folder / "ledger.db", timeout=SECONDS)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute("SELECT * FROM requests ORDER BY id")]


async def until_rows(folder: Path, *end_reasons: str) -> list[Row]:
    """The rows on disk, once they have ended like this, in any order."""
    found: list[Row] = []
    for _ in range(round(SECONDS / 0.05)):
        found = ledger_rows(folder)
        if sorted(row["end_reason"] for row in found) == sorted(end_reasons):
            return found
        await asyncio.sleep(0.05)
    raise AssertionError([(row["model"], row["streaming"], row["end_reason"]) for row in found])


class Spawned:
    """A server program that runs."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
        self.process = process
        self.url = url
        self._log = log

    def said(self) -> str:
        """What it has printed."""
        return self._log.read_text("utf-8", "replace")

    def workers(self) -> list[int]:
        """The process ids of the workers that `arbstr serve` has started, oldest first."""
        return [int(pid) for pid in re.findall(r"worker (\d+) started", self.said())]

    async def until_said(self, what: str, times: int = 1) -> None:
        """Return once it has printed this so many times."""
        await eventually(lambda: self.said().count(what) >= times)

    async def until_taken(self) -> None:
        """Return once its port takes connections, whether they are answered or not."""
        at = httpx.URL(self.url)
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    _, writer = await asyncio.open_connection(at.host, at.port)
                    writer.close()
                    return
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)

    async def until_refused(self) -> None:
        """Return once nobody listens any more."""
        at = httpx.URL(self.url)
        async with asyncio.timeout(SECONDS):
            while True:
                try:
                    _, writer = await asyncio.open_connection(at.host, at.port)
                    writer.close()
                except ConnectionRefusedError:
                    return
                except ConnectionResetError:  # it was closing at this moment
                    pass
                await asyncio.sleep(0.02)

    async def until_up(self) -> None:
        """Return once it answers."""
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(SECONDS):
            while True:
                assert self.process.returncode is None, self.said()
                try:
                    if (await client.get(f"{self.url}/livez")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.05)

    async def ended(self, seconds: float) -> int:
        """Its exit status; fails the test if it takes longer."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                return await self.process.wait()
        except TimeoutError:
            raise AssertionError(f"still there after {time.monotonic() - begun:.1f} s\n{self.said()}") from None

    async def terminate(self, seconds: float) -> int:
        """SIGTERM, and its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ended(seconds)

    async def kill(self) -> None:
        """SIGKILL to it and to its workers, if they are still there."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # the process group that we made: it and its workers
        await self.process.wait()


def running(pid: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody has asked for is none."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except FileNotFoundError:  # no Linux, or gone since
        return not Path("/proc/self").exists()


def command(kind: str, port: int, workers: int, app: str, options: Sequence[str]) -> list[str]:
    """What one types to start a server, after `python -m`."""
    match kind:
        case "hypercorn":
            return ["hypercorn", "-b", f"127.0.0.1:{port}", "-w", str(workers), *options, app]
        case "uvicorn":
            return ["uvicorn", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers), *options, app]
        case "granian":
            interface = [] if "--interface" in options else ["--interface", "asgi"]
            place = ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
            return ["granian", *place, *interface, *options, app]
    return [*options]


def kind_arguments(kind: str, port: int, workers: int, app: str, options: Sequence[str], config: Path) -> list[str]:
    """What Python gets to start a server of this kind."""
    if kind == "arbstr":
        return ["-c", "from arbstr_asgi.cli.main import main; main()", "serve", "-c", str(config), *options]
    return ["-m", *command(kind, port, workers, app, options)]


async def started(folder: Path, arguments: Sequence[str], config: Path, port: int, *, files: int = 0) -> Spawned:
    """A server of which nothing is known yet; `kill` it in the end."""
    limited = ["sh", "-c", f'ulimit -Sn {files} && exec "$0" "$@"'] if files else []
    log = folder / "server.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *limited,
            sys.executable,
            *arguments,
            cwd=folder,
            env={**os.environ, "ARBSTR_CONFIG": str(config), "PYTHONUNBUFFERED": "1"},
            stdout=out,
            stderr=out,
            start_new_session=True,  # so that the workers of a server that failed can be ended too
        )
    return Spawned(process, f"http://127.0.0.1:{port}", log)


@asynccontextmanager
async def spawned(
    folder: Path,
    kind: str,
    url: str,
    *options: str,
    workers: int = 1,
    app: str = "arbstr_asgi.asgi:app",
    grace: float = 1.0,
    listen: int = 0,
    files: int = 0,
    database: Mapping[str, Any] | None = None,
    provider: Mapping[str, Any] | None = None,
    more: str = "",
) -> AsyncIterator[Spawned]:
    """A server (hypercorn, uvicorn, granian, arbstr) in front of the provider at `url`; it is gone afterwards.

    `listen` is the port that the options of `arbstr` name, instead of that of its file; `files` is the soft limit of
    its open files, `database` another than the SQLite file in `folder`, `provider` says more of the provider, and
    `more` goes to the end of the configuration.
    """
    port = listen or free_port()
    facts: dict[str, Any] = {"workers": workers, "grace": grace, "database": database, "provider": provider}
    config = write_toml(folder, url, free_port() if listen else port, more=more, **facts)
    arguments = kind_arguments(kind, port, workers, app, options, config)
    server = await started(folder, arguments, config, port, files=files)
    try:
        await server.until_up()
        yield server
    finally:
        await server.kill()
