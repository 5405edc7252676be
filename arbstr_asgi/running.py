"""The calls that go on."""

import asyncio
from collections.abc import Iterator

from arbstr_asgi.exchange import Exchange


class Running:
    """Knows each exchange from `begin` to `end`."""

    def __init__(self) -> None:
        self._exchanges: dict[Exchange, None] = {}  # in the order in which they began
        self._none: asyncio.Event | None = None

    def __len__(self) -> int:
        return len(self._exchanges)

    def __iter__(self) -> Iterator[Exchange]:
        """Those that go on now, whatever becomes of them meanwhile."""
        return iter(list(self._exchanges))

    def begin(self, exchange: Exchange) -> None:
        """It goes on from now on."""
        self._exchanges[exchange] = None

    def end(self, exchange: Exchange) -> None:
        """It goes on no more."""
        del self._exchanges[exchange]
        if self._none is not None and not self._exchanges:
            self._none.set()

    def stop(self) -> None:
        """Tell all of them to end."""
        for exchange in self:
            exchange.stop()

    async def ended(self, timeout: float) -> None:
        """Return when none goes on, or after `timeout` seconds."""
        if self._exchanges:
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
        return sum(exchange.streams for exchange in self._exchanges)
