"""The calls that go on."""

import asyncio
from collections.abc import Iterator

from arbstr_asgi.exchange import Call


class ActiveCalls:
    """Knows each exchange from `begin` to `end`."""

    def __init__(self) -> None:
        self._calls: dict[Call, None] = {}  # in the order in which they began
        self._none: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def __iter__(self) -> Iterator[Call]:
        """Those that go on now, whatever becomes of them meanwhile."""
        return iter(list(self._calls))

    def add(self, exchange: Call) -> None:
        """It goes on from now on."""
        self._calls[exchange] = None

    def discard(self, exchange: Call) -> None:
        """It goes on no more."""
        del self._calls[exchange]
        if self._none is not None and not self._calls:
            self._none.set()

    def stop(self) -> None:
        """Tell all of them to end."""
        for exchange in self:
            exchange.stop()

    async def wait_ended(self, timeout: float) -> None:
        """Return when none goes on, or after `timeout` seconds."""
        if self._calls:
            self._none = asyncio.Event()
            try:
                async with asyncio.timeout(timeout):
                    await self._none.wait()
            except TimeoutError:
                pass
            finally:
                self._none = None

    @property
    def streams(self) -> int:
        """How many of them have begun to stream."""
        return sum(exchange.streams for exchange in self._calls)
