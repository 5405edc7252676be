"""Opens the meter for a response; decodes a content-encoding (gzip, deflate, zstd, brotli) for metering."""

import logging
import zlib
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Protocol

from arbstr_asgi.protocols.meter import BeforeDone, Meter, report_failure
from arbstr_asgi.protocols.reply import ReplySummary
from arbstr_asgi.protocols.stream_meter import SLICE_BYTES, EventMeter

logger = logging.getLogger("arbstr_asgi")

GZIP_FIRST_BYTE = 0x1F
# A body that decodes to more than MIN_DECODED_BYTES plus MAX_RATIO times its size is a decompression bomb, which would
# block other streams: JSON rarely compresses to a twentieth.
MIN_DECODED_BYTES = 1024 * 1024
MAX_RATIO = 64
MAX_DECODED_BYTES = 1024 * 1024 * 1024  # about a minute of CPU, per response
MAX_ZSTD_WINDOW_LOG = 23  # 8 MiB, the maximum of RFC 9659
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
INSTALL_COMMAND = 'pip install "arbstr-asgi[encodings]"'


class Decoder(Protocol):
    """Decodes a content-encoding in bounded steps."""

    def decode(self, data: bytes) -> bytes:
        """At most about SLICE_BYTES decoded bytes; keeps the rest of `data`. Raises any exception for invalid data."""
        ...

    @property
    def has_more(self) -> bool:
        """Whether `decode(b"")` would return more."""
        ...


def open_meter(
    *,
    content_type: str | None,
    content_encoding: str | None,
    strip: bool,
    before_done: BeforeDone | None = None,
) -> Meter:
    """The meter for a response: event stream or JSON document, by its first bytes, else by its content type.

    `strip`: remove what our `include_usage` adds to the stream. `before_done` returns bytes to insert before `[DONE]`.
    A body with a content-encoding passes unchanged.
    """
    expect_document = (content_type or "").partition(";")[0].strip().lower() != "text/event-stream"
    encoding = (content_encoding or "identity").strip().lower()
    if encoding != "identity":
        return DecodingMeter(EventMeter(ReplySummary(), expect_document=expect_document), encoding)
    return EventMeter(ReplySummary(), strip=strip, before_done=before_done, expect_document=expect_document)


class DecodingMeter:
    """Passes an encoded body unchanged, and feeds the decoded bytes to an inner meter."""

    edits = False

    def __init__(self, inner: Meter, encoding: str) -> None:
        self.summary = inner.summary
        self._inner = inner
        factory = _find_decoder(encoding if encoding in ("gzip", "x-gzip", "deflate", "zstd", "br") else "")
        self._decoder = None if factory is None else factory()
        self._encoded = b""
        self._budget = MAX_DECODED_BYTES
        self._ratio_budget = MIN_DECODED_BYTES  # how many more bytes the received ones may decode to
        self.pending = False

    def feed(self, chunk: bytes) -> bytes:
        """Returns the chunk unchanged; decodes its first slice."""
        if self._decoder is not None and chunk:
            self._encoded += chunk
            self._ratio_budget += MAX_RATIO * len(chunk)
            self.pending = True
            self.resume()
        return chunk

    def resume(self) -> bytes:
        """Decode and meter the next slice; returns b""."""
        if self._decoder is not None:
            data = b"" if self._decoder.has_more else self._encoded[:SLICE_BYTES]
            self._encoded = self._encoded[len(data) :]
            try:
                decoded = self._decoder.decode(data)
            except Exception as error:  # noqa: BLE001 - each library has its own exceptions
                if not isinstance(error, zlib.error):
                    report_failure(error)
                self._stop_decoding()
                return b""
            self._budget -= len(decoded)
            self._ratio_budget -= len(decoded)
            if min(self._budget, self._ratio_budget) < 0:
                self._stop_decoding()
                return b""
            for at in range(0, len(decoded), SLICE_BYTES):
                self._inner.feed(decoded[at : at + SLICE_BYTES])
            self.pending = self._decoder.has_more or bool(self._encoded)
        return b""

    def _stop_decoding(self) -> None:
        self._decoder, self._encoded, self.pending = None, b"", False

    def finish(self) -> bytes:
        """Decode and meter the rest; returns b""."""
        while self.pending:
            self.resume()
        self._inner.finish()
        self.summary.finished = self.summary.finished or self._decoder is None  # unknown, so not incomplete
        return b""

    def abandon(self) -> bool:
        """False: no event can follow inside an encoded body."""
        self.pending = False
        self._inner.abandon()
        return False


@cache
def _find_decoder(encoding: str) -> Callable[[], Decoder] | None:
    """The decoder class of an encoding; None, with one warning, where it is unknown or its package is missing."""
    if encoding in ("gzip", "x-gzip", "deflate"):
        return _ZlibDecoder
    for name, module, decoder in (
        ("zstd", "compression.zstd", _ZstdDecoder),  # Python's own, from 3.14 on
        ("zstd", "backports.zstd", _ZstdDecoder),
        ("br", "brotli", _BrotliDecoder),
    ):
        if encoding == name:
            try:
                library = import_module(module)
            except ImportError:
                continue
            return lambda decoder=decoder, library=library: decoder(library)  # type: ignore[misc]
    known = encoding in ("zstd", "br")
    logger.warning(
        "a provider sends %s although identity was asked for; such replies pass, but have no usage%s",
        f"content-encoding {encoding}" if known else "an unknown content-encoding",
        f". To read them: {INSTALL_COMMAND}" if known else "",
    )
    return None


class _ZlibDecoder:
    """Detects gzip, zlib, or the raw deflate that many servers send as `deflate`, by the first byte."""

    def __init__(self) -> None:
        self._decoder: Any = None
        self._unconsumed = b""
        self.has_more = False

    def decode(self, data: bytes) -> bytes:
        data = self._unconsumed + data
        if self._decoder is None and data:
            has_header = data[0] == GZIP_FIRST_BYTE or data[0] & 0x0F == zlib.DEFLATED
            self._decoder = zlib.decompressobj(wbits=GZIP_OR_ZLIB if has_header else -zlib.MAX_WBITS)
        if self._decoder is None:
            return b""
        decoded: bytes = self._decoder.decompress(data, SLICE_BYTES)
        self._unconsumed = self._decoder.unconsumed_tail
        self.has_more = bool(self._unconsumed) or len(decoded) == SLICE_BYTES
        if self._decoder.eof:  # another gzip member may follow
            self._unconsumed, self._decoder = self._decoder.unused_data, None
            self.has_more = bool(self._unconsumed)
        return decoded


class _ZstdDecoder:
    def __init__(self, zstd: Any) -> None:
        self._zstd = zstd
        self._decoder: Any = None
        self._unconsumed = b""
        self.has_more = False

    def decode(self, data: bytes) -> bytes:
        data, self._unconsumed = self._unconsumed + data, b""
        if self._decoder is None:
            if not data:
                return b""
            options = {self._zstd.DecompressionParameter.window_log_max: MAX_ZSTD_WINDOW_LOG}
            self._decoder = self._zstd.ZstdDecompressor(options=options)
        decoded: bytes = self._decoder.decompress(data, SLICE_BYTES)
        self.has_more = not self._decoder.needs_input
        if self._decoder.eof:  # another frame may follow
            self._unconsumed, self._decoder = self._decoder.unused_data, None
            self.has_more = bool(self._unconsumed)
        return decoded


class _BrotliDecoder:
    def __init__(self, brotli: Any) -> None:
        self._decoder = brotli.Decompressor()
        self._unconsumed = b""
        self.has_more = False

    def decode(self, data: bytes) -> bytes:
        self._unconsumed += data
        consumed = b""
        if self._decoder.can_accept_more_data():
            consumed, self._unconsumed = self._unconsumed, b""
        decoded: bytes = self._decoder.process(consumed, output_buffer_limit=SLICE_BYTES)
        takes_more = self._decoder.can_accept_more_data() and not self._unconsumed
        self.has_more = not self._decoder.is_finished() and (len(decoded) >= SLICE_BYTES or not takes_more)
        return decoded
