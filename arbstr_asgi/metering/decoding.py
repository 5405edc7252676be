"""Meters a reply with a content-encoding."""

import zlib
from typing import Any

from arbstr_asgi.metering.meter import Meter
from arbstr_asgi.metering.plain import MAX_PLAIN_BYTES


class DecodingMeter:
    """Passes an encoded body untouched, and has a decoded copy of it metered."""

    def __init__(self, inner: Meter, *, known: bool) -> None:
        self.reading = inner.reading
        self._inner = inner
        self._decoder: Any = zlib.decompressobj(wbits=47) if known else None  # gzip or zlib, by the bytes
        self._room = MAX_PLAIN_BYTES

    def feed(self, chunk: bytes) -> bytes:
        """Everything passes."""
        if self._decoder is not None:
            try:
                decoded = self._decoder.decompress(chunk, self._room)
                self._room -= len(decoded)
                self._inner.feed(decoded)
                if self._room <= 0:
                    self._decoder = None
            except zlib.error:
                self._decoder = None
        return chunk

    def finish(self) -> bytes:
        """Read the decoded copy's end."""
        self._inner.finish()
        return b""

    def abandon(self) -> bool:
        """No event of ours could follow inside an encoded body."""
        return False
