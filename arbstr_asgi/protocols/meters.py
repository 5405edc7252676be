"""Chooses the meter for a response; meters for a wrong content type and for a content-encoding."""

import zlib
from typing import Any

from arbstr_asgi.protocols.body_meter import PlainMeter
from arbstr_asgi.protocols.json_edit import BOM
from arbstr_asgi.protocols.meter import BeforeDone, Meter
from arbstr_asgi.protocols.reply import ReplySummary
from arbstr_asgi.protocols.stream_meter import MAX_EVENT_BYTES, EventMeter

GZIP = 0x1F
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
PIECE_BYTES = 64 * 1024  # compressed, per step
SLICE_BYTES = 256 * 1024  # decoded, per step
# A piece that decodes to more than this is a decompression bomb, which would block other streams: JSON rarely
# compresses to a twentieth.
MIN_BUDGET = 1024 * 1024
MAX_RATIO = 64
MAX_DECODED = 1024 * 1024 * 1024  # about a minute of CPU, per reply


def open_meter(
    *,
    content_type: str | None,
    content_encoding: str | None,
    streaming: bool,
    strip: bool,
    before_done: BeforeDone | None = None,
) -> Meter:
    """The meter for a response, by its content type.

    `streaming`: the request asked for a stream. `strip`: remove what our `include_usage` adds to the stream.
    `before_done` returns bytes to insert before `[DONE]`. A body with a content-encoding passes unchanged.
    """
    is_sse = (content_type or "").partition(";")[0].strip().lower() == "text/event-stream"
    encoding = (content_encoding or "identity").strip().lower()
    if encoding != "identity":
        inner: Meter = EventMeter(ReplySummary()) if is_sse else PlainMeter(ReplySummary())
        return DecodingMeter(inner, supported=encoding in ("gzip", "x-gzip", "deflate"))
    if is_sse:
        return EventMeter(ReplySummary(), strip=strip, before_done=before_done)
    if streaming:
        return SniffingMeter(strip=strip, before_done=before_done)
    return PlainMeter(ReplySummary())


class SniffingMeter:
    """For a response to a streaming request that is not labelled an event stream: its first bytes decide."""

    def __init__(self, *, strip: bool, before_done: BeforeDone | None) -> None:
        self.summary = ReplySummary()
        self.edits = strip or before_done is not None
        self._strip = strip
        self._before_done = before_done
        self._held = b""
        self._inner: Meter | None = None

    def feed(self, chunk: bytes) -> bytes:
        """The bytes for the client; leading blank lines pass at once."""
        if self._inner is None:
            if not self._held and not chunk.strip(b"\r\n"):
                return chunk
            self._held += chunk
            self._inner = self._decide(self._held)
            if self._inner is None:
                return b"" if self.edits else chunk
            out = self._inner.feed(self._held)
            self._held = b""
            return out if self.edits else chunk
        return self._inner.feed(chunk)

    def finish(self) -> bytes:
        """The remaining bytes."""
        if self._inner is None:
            self._inner = PlainMeter(self.summary)
            held = self._inner.feed(self._held)
            return (held if self.edits else b"") + self._inner.finish()
        return self._inner.finish()

    def abandon(self) -> bool:
        """Drop buffered bytes."""
        return self._inner is not None and self._inner.abandon()

    def _decide(self, start: bytes) -> Meter | None:
        if len(start) > MAX_EVENT_BYTES:
            return PlainMeter(self.summary)
        text = start.lstrip(b"\r\n").removeprefix(BOM).lstrip(b"\r\n")
        fields = (b"data:", b"event:", b":")
        if text.startswith(fields):
            return EventMeter(self.summary, strip=self._strip, before_done=self._before_done)
        undecided = any(field.startswith(text) for field in fields) or BOM.startswith(text)
        return None if undecided else PlainMeter(self.summary)


class DecodingMeter:
    """Passes a compressed body unchanged, and feeds the decoded bytes to an inner meter."""

    edits = False

    def __init__(self, inner: Meter, *, supported: bool) -> None:
        self.summary = inner.summary
        self._inner = inner
        self._supported = supported
        self._decoder: Any = None
        self._budget = MAX_DECODED

    def feed(self, chunk: bytes) -> bytes:
        """Returns the chunk unchanged."""
        for offset in range(0, len(chunk), PIECE_BYTES):
            if self._supported:
                try:
                    self._read(chunk[offset : offset + PIECE_BYTES])
                except zlib.error:
                    self._supported = False
        return chunk

    def _read(self, data: bytes) -> None:
        budget = min(self._budget, MIN_BUDGET + MAX_RATIO * len(data))
        self._budget -= budget
        full = False
        while data or full:
            if self._decoder is None:
                self._decoder = _decoder(data)
            decoded = self._decoder.decompress(data, SLICE_BYTES)
            budget -= len(decoded)
            if budget < 0:
                self._supported = False
                return
            self._inner.feed(decoded)
            full = len(decoded) == SLICE_BYTES
            data = self._decoder.unconsumed_tail
            if self._decoder.eof:  # another gzip member may follow
                data, full = self._decoder.unused_data, False
                self._decoder = None
        self._budget += budget

    def finish(self) -> bytes:
        """Finish the inner meter."""
        self._inner.finish()
        self.summary.finished = self.summary.finished or not self._supported  # unknown where it can't be decoded
        return b""

    def abandon(self) -> bool:
        """False: no event can follow inside a compressed body."""
        return False


def _decoder(chunk: bytes) -> Any:
    """Detect gzip, zlib, or the raw deflate that many servers send as `deflate`, by the first byte."""
    has_header = chunk[0] == GZIP or chunk[0] & 0x0F == zlib.DEFLATED
    return zlib.decompressobj(wbits=GZIP_OR_ZLIB if has_header else -zlib.MAX_WBITS)
