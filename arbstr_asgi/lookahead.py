"""The beginning of a reply, read before anybody is told of it."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from arbstr_asgi.errors import UpstreamError
from arbstr_asgi.upstream import ProviderReply


class Lookahead:
    """A reply's body of which some has been read already; iterating gives all of it."""

    def __init__(self, reply: ProviderReply) -> None:
        self._rest = reply.__aiter__()
        self._read: list[bytes] = []
        self._coming: asyncio.Task[bytes | None] | None = None
        self.error: UpstreamError | None = None
        """How the body broke off, if it has."""
        self._ended = False

    @property
    def whole(self) -> bytes | None:
        """All of the body, where it has ended well; None where it has not, or not yet."""
        return b"".join(self._read) if self._ended and self.error is None else None

    async def read(self, enough: Callable[[bytes], bool], seconds: float | None = None) -> None:
        """Read until a chunk is `enough`, to the end, or for so many seconds. A failure is kept for the iterating."""
        deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        while not self._ended:
            if self._coming is None:
                self._coming = asyncio.create_task(self._next())
            left = None if deadline is None else max(deadline - asyncio.get_running_loop().time(), 0.0)
            done, _ = await asyncio.wait({self._coming}, timeout=left)
            if not done:
                return
            chunk = await self._take()
            if chunk is not None:
                self._read.append(chunk)
                if enough(chunk):
                    return

    async def close(self) -> None:
        """Read no more."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.wait({self._coming})
        assert isinstance(self._rest, AsyncGenerator)
        await self._rest.aclose()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Raises UpstreamError where the body breaks off."""
        while self._read:
            yield self._read.pop(0)
        if self._coming is not None:
            chunk = await self._take()
            if chunk is not None:
                yield chunk
        if self.error is not None:
            raise self.error
        if not self._ended:
            async for chunk in self._rest:
                yield chunk

    async def _next(self) -> bytes | None:
        return await anext(self._rest, None)

    async def _take(self) -> bytes | None:
        """What has come, or None at the end."""
        assert self._coming is not None
        try:
            chunk = await self._coming
        except UpstreamError as error:
            chunk, self.error = None, error
        self._coming = None
        self._ended = chunk is None
        return chunk
