"""A server in front of the provider and of one database, its clients, and the count at the end."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import tests.faults.scripts  # noqa: F401 - the provider knows it by its name
from tests.faults.calls import Call, now, slowest
from tests.faults.ledgers import Base, File, Rows
from tests.faults.load import load, mixed
from tests.faults.result import Result
from tests.support.servers import Spawned, free_port, kind_arguments, started, write_toml

SETTLE_SECONDS = 40.0  # pauses between attempts grow to ten
STOP_SECONDS = 20.0
BEHIND = 0.2  # seconds in which a client may still read what a server that was killed had sent
NOISE = re.compile(r".*(?:Traceback|CRITICAL|Unclosed|never awaited|Task was destroyed|Exception ignored).*")

Ledger = File | Base


class Scene:
    """`allowance` is for how many seconds before a SIGKILL an answer may be without its row."""

    def __init__(self, folder: Path, url: str, ledger: Ledger, clients: int, allowance: float, **server: Any) -> None:
        self.folder = folder
        self.ledger = ledger
        self.clients = clients
        self.calls: list[Call] = []
        self.kills: list[float] = []
        self.problems: list[str] = []
        self.said = ""
        self._allowance = allowance
        self._program = server.pop("program", "arbstr")
        self._options = server.pop("options", ())
        self._files = server.pop("files", 0)
        self._status = server.pop("status", 0)
        self._workers = server.get("workers", 1)
        database = {"url": ledger.url, "spill": str(folder / "spill"), **server.pop("database", {})}
        self._port = free_port()
        self._config = write_toml(folder, url, self._port, database=database, **server)
        self._server: Spawned | None = None
        self._up = 0.0  # when it first answered

    @property
    def server(self) -> Spawned:
        """The server that runs."""
        assert self._server is not None
        return self._server

    async def start(self, *, until_up: bool = True) -> None:
        """Start the server, and return once it answers, or at once."""
        app = "arbstr_asgi.asgi:app"
        arguments = kind_arguments(self._program, self._port, self._workers, app, self._options, self._config)
        self._server = await started(self.folder, arguments, self._config, self._port, files=self._files)
        if until_up:
            await self._server.until_up()
            self._up = self._up or now()
        if until_up and self._workers > 1:
            await self._server.until_said("Running on", self._workers)

    async def kill(self) -> None:
        """SIGKILL to the server and its workers."""
        self.kills.append(now())
        await self.server.kill()
        self._over()

    async def terminate(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM; another exit status than expected is a problem, and so is a server that stays."""
        try:
            ended = await self.server.terminate(seconds)
        except AssertionError:
            self.problems.append(f"still there {seconds:.0f} s after SIGTERM")
            await self.server.kill()
        else:
            if ended != self._status:
                self.problems.append(f"exit status {ended}")
        self._over()

    async def close(self) -> None:
        """End the server, if it still runs."""
        if self._server is not None:
            await self._server.kill()

    def _over(self) -> None:
        self.said += self.server.said()
        self._server = None

    @asynccontextmanager
    async def load(self, make: Callable[[int], Call] = mixed) -> AsyncIterator[list[Call]]:
        """Clients, as long as the block lasts."""
        async with load(f"http://127.0.0.1:{self._port}", self.clients, make) as calls:
            try:
                yield calls
            finally:
                self.calls += calls

    @property
    def url(self) -> str:
        """Where the server is, or will be."""
        return f"http://127.0.0.1:{self._port}"

    def answered(self, call: Call) -> bool:
        """Whether the client has the whole answer, and not so shortly before a SIGKILL that it may lack its row."""
        return call.whole and not any(
            -BEHIND < kill - call.seen[-1] < self._allowance for kill in self.kills if self._allowance
        )

    async def settle(self, answered: Callable[[Call], bool]) -> None:
        """Wait until each answered call has its row and none is in flight, for a limited time; then end the server.

        Where it has ended already and something lacks, it is started again.
        """
        ids = {call.id for call in self.calls if answered(call)}
        deadline = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < deadline:
            rows = await asyncio.to_thread(self.ledger.rows)
            finished = all(row["end_reason"] != "in_flight" for row in rows.values())
            if finished and ids <= rows.keys():
                break
            if self._server is None:
                await self.start()
            await asyncio.sleep(0.1)
        if self._server is not None:
            await self.terminate()

    async def count(self, result: Result, answered: Callable[[Call], bool], *, every: bool) -> None:
        """Compare what the clients saw with what is in the database; the server has ended."""
        rows = await asyncio.to_thread(self.ledger.rows)
        calls = [call for call in self.calls if answered(call)]
        result.made = len(self.calls)
        result.answered = len(calls)
        result.found = sum(call.id in rows for call in calls)
        result.right = sum(call.id in rows and call.right(rows[call.id]) for call in calls)
        result.worst_ms = slowest(calls)
        wrong = [call for call in calls if call.id not in rows or not call.right(rows[call.id])]
        result.details = [_described(call, rows) for call in wrong]
        result.problems = self.problems + self._further(rows, every=every)

    def _further(self, rows: Rows, *, every: bool) -> list[str]:
        noise = NOISE.findall(self.said) if self._program == "arbstr" else []  # others print what they cancel
        found = sorted({line.strip()[:200] for line in noise})
        if open_rows := sum(row["end_reason"] == "in_flight" for row in rows.values()):
            found.append(f"{open_rows} rows left in flight")
        early = [call for call in self.calls if call.failure == "ConnectionRefusedError" and call.ended < self._up]
        left = [call for call in self.calls if not call.whole and call.status != 503 and call not in early]
        if every and left:
            found.append(f"{len(left)} calls failed: {left[0].status} {left[0].failure}")
        return found


def _described(call: Call, rows: Rows) -> str:
    return f"call {call.number} {call.ending} sent {len(call.sent)} seen {len(call.seen)}: {rows.get(call.id)}"
