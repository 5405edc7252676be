"""An HTTP client that sees what its socket gets: every body byte, and whether the end was clean."""

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import h11

PATH = "/v1/chat/completions"
SECONDS = 20.0


class Wire:
    """One request and what comes back. `clean` is None until the reply has ended, one way or the other."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._http = h11.Connection(h11.CLIENT)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.clean: bool | None = None

    @classmethod
    async def open(
        cls,
        url: str,
        asked: Mapping[str, Any] | bytes | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        path: str = PATH,
        method: str = "POST",
    ) -> "Wire":
        """Connect and send the request."""
        at = urlsplit(url)
        wire = cls(*await asyncio.open_connection(at.hostname, at.port))
        body = asked if isinstance(asked, bytes) else b"" if asked is None else json.dumps(asked).encode()
        sent = {"host": at.netloc, "content-type": "application/json", "content-length": str(len(body))}
        request = h11.Request(method=method, target=path, headers=list({**sent, **(headers or {})}.items()))
        parts = [request, h11.Data(data=body), h11.EndOfMessage()]
        wire._writer.write(b"".join(wire._http.send(part) or b"" for part in parts))
        await wire._writer.drain()
        return wire

    async def until(self, size: int | None = None) -> "Wire":
        """Read until the body has `size` bytes (0: the head is here), or to its end."""
        try:
            async with asyncio.timeout(SECONDS):
                while self.clean is None and (not self.status or size is None or len(self.body) < size):
                    await self._step()
        except TimeoutError:
            raise AssertionError(f"nothing more after {self.status} {self.body!r}") from None
        if self.clean is not None:
            self._writer.close()
        return self

    async def _step(self) -> None:
        try:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(65536))
            elif isinstance(event, h11.Response):
                self.status = event.status_code
                self.headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
            elif isinstance(event, h11.Data):
                self.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                self.clean = True
            else:
                self.clean = False
        except (h11.RemoteProtocolError, OSError):
            self.clean = False

    def hang_up(self, *, reset: bool = False) -> None:
        """Close the connection, politely or not."""
        if reset:
            connection = self._writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._writer.transport.abort()
        self._writer.close()

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


async def eventually(condition: Callable[[], bool], seconds: float = SECONDS) -> None:
    """Return once `condition` holds; fails the test after `seconds`."""
    for _ in range(round(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it has not come about")


async def ask(url: str, asked: Mapping[str, Any] | bytes, **options: Any) -> Wire:
    """A whole call."""
    return await (await Wire.open(url, asked, **options)).until()
