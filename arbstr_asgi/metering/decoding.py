"""Meters a reply with a content-encoding."""

import zlib
from typing import Any

from arbstr_asgi.metering.meter import Meter
from arbstr_asgi.metering.plain import MAX_PLAIN_BYTES

GZIP = 0x1F
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS


class DecodingMeter:
    """Passes an encoded body untouched, and has a decoded copy of it metered."""

    edits = False

    def __init__(self, inner: Meter, *, known: bool) -> None:
        self.reading = inner.reading
        self._inner = inner
        self._known = known
        self._decoder: Any = None
        self._room = MAX_PLAIN_BYTES

    def feed(self, chunk: bytes) -> bytes:
        """Everything passes."""
        data = chunk
        while self._known and data:
            try:
                if self._decoder is None:
                    self._decoder = _decoder(data)
                decoded = self._decoder.decompress(data, self._room)
            except zlib.error:
                self._known = False
                break
            self._room -= len(decoded)
            self._inner.feed(decoded)
            self._known = self._room > 0
            data = self._decoder.unused_data  # of gzip, another member may follow
            if self._decoder.eof:
                self._decoder = None
        return chunk

    def finish(self) -> bytes:
        """Read the decoded copy's end."""
        self._inner.finish()
        self.reading.complete = self.reading.complete or not self._known  # as far as can be told
        return b""

    def abandon(self) -> bool:
        """No event of ours could follow inside an encoded body."""
        return False


def _decoder(chunk: bytes) -> Any:
    """By the first byte: gzip, zlib, or the bare deflate that many servers send under that name."""
    framed = chunk[0] == GZIP or chunk[0] & 0x0F == zlib.DEFLATED
    return zlib.decompressobj(wbits=GZIP_OR_ZLIB if framed else -zlib.MAX_WBITS)
