"""What is measured of a server, round by round."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any, NamedTuple

from client import PLAIN_REQUEST, Took, drive, quantile, stream_request
from provider import CHUNKS

MANY = 32
PLAIN, STREAM = "plain call", "chunk"


class Plan(NamedTuple):
    """How much to measure."""

    rounds: int
    calls: int
    streams: int
    seconds: float


class Target:
    """A server under test, and what has been measured of it."""

    def __init__(self, port: int, used: Callable[[], Awaitable[float]] | None, *, base: str | None = None) -> None:
        """`used` tells the CPU seconds so far; `base` names the target that this one is compared with."""
        self.calls = 0
        self._base = base
        self._port = port
        self._used = used
        self._cpu: dict[tuple[str, int], list[float]] = {}
        self._took: dict[tuple[str, int], list[Took]] = {}
        self._rates: list[float] = []

    async def warm_up(self) -> None:
        """Let caches fill and code be imported; the calls count for the rows only."""
        self.calls += len(await drive(self._port, PLAIN_REQUEST, 20))
        self.calls += len(await drive(self._port, stream_request(0.001), 1))

    async def round(self, plan: Plan) -> None:
        """Measure everything once."""
        await self._measure(PLAIN, PLAIN_REQUEST, 1, plan.calls)
        await self._measure(PLAIN, PLAIN_REQUEST, MANY, max(1, plan.calls * 2 // MANY))
        await self._measure(STREAM, stream_request(0.001), 1, plan.streams)
        await self._measure(STREAM, stream_request(0.012), MANY, 1)

    async def _measure(self, what: str, asked: bytes, connections: int, calls: int) -> None:
        before = None if self._used is None else await self._used()
        began = time.perf_counter()
        found = await asyncio.gather(*(drive(self._port, asked, calls) for _ in range(connections)))
        seconds = time.perf_counter() - began
        took = [call for one in found for call in one]
        self.calls += len(took)
        self._took.setdefault((what, connections), []).extend(took)
        if what == PLAIN and connections == MANY:
            self._rates.append(len(took) / seconds)
        if self._used is not None and before is not None:
            each = (await self._used() - before) / (len(took) * (CHUNKS if what == STREAM else 1))
            self._cpu.setdefault((what, connections), []).append(each * 1e6)

    def results(self) -> dict[str, Any]:
        """The medians of the rounds, as JSON can hold them: µs of CPU, milliseconds, calls a second."""
        plain = {connections: [call.whole for call in self._took[PLAIN, connections]] for connections in (1, MANY)}
        return {
            "base": self._base,
            "cpu": {cpu_name(*key): median(self._cpu[key]) if key in self._cpu else None for key in self._took},
            "p50": {str(connections): quantile(took, 0.5) * 1e3 for connections, took in plain.items()},
            "p99": {str(connections): quantile(took, 0.99) * 1e3 for connections, took in plain.items()},
            "first_chunk": quantile([call.first for call in self._took[STREAM, 1]], 0.5) * 1e3,
            "rate": median(self._rates),
        }


def cpu_name(what: str, connections: int) -> str:
    """What a figure is called in the results."""
    return f"CPU µs per {what}, {connections} connection{'s' * (connections > 1)}"
