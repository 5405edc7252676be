"""What is measured of a server, round by round."""

import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any, NamedTuple

from harness.client import PLAIN_REQUEST, Took, clients, quantile, stream_request
from harness.provider import CHUNKS

MANY = 32
PLAIN, STREAM = "plain call", "chunk"
WORKS = ((PLAIN, 1), (PLAIN, MANY), (STREAM, 1), (STREAM, MANY))
"""What is asked for, and at how many connections."""
PACES = {1: 0.001, MANY: 0.012}  # seconds between the chunks of a stream: no server is saturated


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
        async with clients(self._port, 1) as client:
            await client.drive(PLAIN_REQUEST, 20)
            await client.drive(stream_request(PACES[1]), 1)
        self.calls += client.made

    async def measure(self, what: str, connections: int, plan: Plan) -> None:
        """Measure one of `WORKS` once."""
        asked = PLAIN_REQUEST if what == PLAIN else stream_request(PACES[connections])
        calls = {1: plan.calls, MANY: max(1, plan.calls * 4 // MANY)} if what == PLAIN else {1: plan.streams, MANY: 1}
        async with clients(self._port, connections) as client:
            before = None if self._used is None else await self._used()
            began = time.perf_counter()
            took = await client.drive(asked, calls[connections])
            seconds = time.perf_counter() - began
            used = None if self._used is None or before is None else await self._used() - before
        self.calls += client.made
        self._took.setdefault((what, connections), []).extend(took)
        if what == PLAIN and connections == MANY:
            self._rates.append(len(took) / seconds)
        if used is not None:
            each = used / (len(took) * (CHUNKS if what == STREAM else 1))
            self._cpu.setdefault((what, connections), []).append(each * 1e6)

    def results(self) -> dict[str, Any]:
        """As JSON can hold it: µs of CPU in each round, milliseconds, calls a second."""
        plain = {connections: [call.whole for call in self._took[PLAIN, connections]] for connections in (1, MANY)}
        return {
            "base": self._base,
            "cpu": {cpu_name(*key): self._cpu.get(key) for key in self._took},
            "p50": {str(connections): quantile(took, 0.5) * 1e3 for connections, took in plain.items()},
            "p99": {str(connections): quantile(took, 0.99) * 1e3 for connections, took in plain.items()},
            "first_chunk": quantile([call.first for call in self._took[STREAM, 1]], 0.5) * 1e3,
            "rate": median(self._rates),
        }


def cpu_name(what: str, connections: int) -> str:
    """What a figure is called in the results."""
    return f"CPU µs per {what}, {connections} connection{'s' * (connections > 1)}"
