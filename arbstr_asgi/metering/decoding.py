"""Meters a reply with a content-encoding."""

import zlib
from typing import Any

from arbstr_asgi.metering.meter import Meter

GZIP = 0x1F
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
PIECE = 64 * 1024  # read at a time
SLICE = 256 * 1024  # decoded at a time
# A piece that decodes to more than this is a bomb, whose decoding would hold other streams up: JSON seldom shrinks to
# a twentieth.
SPARE_BYTES = 1024 * 1024
MAX_RATIO = 64
MAX_DECODED = 1024 * 1024 * 1024  # a minute of CPU or so, for one reply


class DecodingMeter:
    """Passes an encoded body untouched, and has it metered as it is decoded."""

    edits = False

    def __init__(self, inner: Meter, *, known: bool) -> None:
        self.summary = inner.summary
        self._inner = inner
        self._known = known
        self._decoder: Any = None
        self._room = MAX_DECODED

    def feed(self, chunk: bytes) -> bytes:
        """Everything passes."""
        for at in range(0, len(chunk), PIECE):
            if self._known:
                try:
                    self._read(chunk[at : at + PIECE])
                except zlib.error:
                    self._known = False
        return chunk

    def _read(self, data: bytes) -> None:
        room = min(self._room, SPARE_BYTES + MAX_RATIO * len(data))
        self._room -= room
        full = False
        while data or full:
            if self._decoder is None:
                self._decoder = _decoder(data)
            decoded = self._decoder.decompress(data, SLICE)
            room -= len(decoded)
            if room < 0:
                self._known = False
                return
            self._inner.feed(decoded)
            full = len(decoded) == SLICE
            data = self._decoder.unconsumed_tail
            if self._decoder.eof:  # of gzip, another member may follow
                data, full = self._decoder.unused_data, False
                self._decoder = None
        self._room += room

    def finish(self) -> bytes:
        """Read the decoded body's end."""
        self._inner.finish()
        self.summary.finished = self.summary.finished or not self._known  # as far as can be told
        return b""

    def abandon(self) -> bool:
        """No event of ours could follow inside an encoded body."""
        return False


def _decoder(chunk: bytes) -> Any:
    """By the first byte: gzip, zlib, or the bare deflate that many servers send under that name."""
    framed = chunk[0] == GZIP or chunk[0] & 0x0F == zlib.DEFLATED
    return zlib.decompressobj(wbits=GZIP_OR_ZLIB if framed else -zlib.MAX_WBITS)
