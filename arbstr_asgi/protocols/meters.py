"""Chooses the meter for a reply, also for one that isn't what it is called, or has a content-encoding."""

import logging
import zlib
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, Protocol

from arbstr_asgi.protocols.meter import BeforeDone, Meter, report_failure
from arbstr_asgi.protocols.reply import ReplySummary
from arbstr_asgi.protocols.stream_meter import SLICE, EventMeter

logger = logging.getLogger("arbstr_asgi")

GZIP = 0x1F
# What decodes to more than this is a bomb, whose decoding would take long: JSON seldom shrinks to a twentieth.
SPARE_BYTES = 1024 * 1024
MAX_RATIO = 64
MAX_DECODED = 1024 * 1024 * 1024  # a minute of CPU or so, for one reply
MAX_WINDOW = 23  # of zstd, as a power of two: 8 MiB, the most that RFC 9659 allows in HTTP
GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
EXTRA = 'pip install "arbstr-asgi[encodings]"'


class Decoder(Protocol):
    """Undoes a content-encoding, a bounded part at a time."""

    def decode(self, data: bytes) -> bytes:
        """At most about `SLICE` decoded bytes of what it has and of `data`. Raises anything for what isn't encoded."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether there is more to decode without further data."""
        ...


class _ZlibDecoder:
    """gzip, zlib, or the bare deflate that many servers send under that name: the first byte tells."""

    def __init__(self) -> None:
        self._decoder: Any = None
        self._rest = b""
        self.is_full = False

    def decode(self, data: bytes) -> bytes:
        data = self._rest + data
        if self._decoder is None and data:
            framed = data[0] == GZIP or data[0] & 0x0F == zlib.DEFLATED
            self._decoder = zlib.decompressobj(wbits=GZIP_OR_ZLIB if framed else -zlib.MAX_WBITS)
        if self._decoder is None:
            return b""
        decoded: bytes = self._decoder.decompress(data, SLICE)
        self._rest = self._decoder.unconsumed_tail
        self.is_full = bool(self._rest) or len(decoded) == SLICE
        if self._decoder.eof:  # of gzip, another member may follow
            self._rest, self._decoder = self._decoder.unused_data, None
            self.is_full = bool(self._rest)
        return decoded


class _ZstdDecoder:
    def __init__(self, zstd: Any) -> None:
        self._zstd = zstd
        self._decoder: Any = None
        self._rest = b""
        self.is_full = False

    def decode(self, data: bytes) -> bytes:
        data, self._rest = self._rest + data, b""
        if self._decoder is None:
            if not data:
                return b""
            options = {self._zstd.DecompressionParameter.window_log_max: MAX_WINDOW}
            self._decoder = self._zstd.ZstdDecompressor(options=options)
        decoded: bytes = self._decoder.decompress(data, SLICE)
        self.is_full = not self._decoder.needs_input
        if self._decoder.eof:  # another frame may follow
            self._rest, self._decoder = self._decoder.unused_data, None
            self.is_full = bool(self._rest)
        return decoded


class _BrotliDecoder:
    def __init__(self, brotli: Any) -> None:
        self._decoder = brotli.Decompressor()
        self._rest = b""
        self.is_full = False

    def decode(self, data: bytes) -> bytes:
        self._rest += data
        given = b""
        if self._decoder.can_accept_more_data():
            given, self._rest = self._rest, b""
        decoded: bytes = self._decoder.process(given, output_buffer_limit=SLICE)
        takes_more = self._decoder.can_accept_more_data() and not self._rest
        self.is_full = not self._decoder.is_finished() and (len(decoded) >= SLICE or not takes_more)
        return decoded


@cache
def _decoder(encoding: str) -> Callable[[], Decoder] | None:
    """What undoes an encoding; None, and once a warning, where nothing here does."""
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
        f". To read them: {EXTRA}" if known else "",
    )
    return None


class DecodingMeter:
    """Passes an encoded body untouched, and has it metered as it is decoded."""

    edits = False

    def __init__(self, inner: Meter, encoding: str) -> None:
        self.summary = inner.summary
        self._inner = inner
        made = _decoder(encoding if encoding in ("gzip", "x-gzip", "deflate", "zstd", "br") else "")
        self._decoder = None if made is None else made()
        self._waiting = b""
        self._room = MAX_DECODED
        self._likely = SPARE_BYTES  # how much more what has come may decode to
        self.pending = False

    def feed(self, chunk: bytes) -> bytes:
        """Everything passes."""
        if self._decoder is not None and chunk:
            self._waiting += chunk
            self._likely += MAX_RATIO * len(chunk)
            self.pending = True
            self.resume()
        return chunk

    def resume(self) -> bytes:
        """Decode and read the next part."""
        if self._decoder is not None:
            data = b"" if self._decoder.is_full else self._waiting[:SLICE]
            self._waiting = self._waiting[len(data) :]
            try:
                decoded = self._decoder.decode(data)
            except Exception as error:  # noqa: BLE001 - each library has its own
                if not isinstance(error, zlib.error):
                    report_failure(error)
                self._give_up()
                return b""
            self._room -= len(decoded)
            self._likely -= len(decoded)
            if min(self._room, self._likely) < 0:
                self._give_up()
                return b""
            for at in range(0, len(decoded), SLICE):
                self._inner.feed(decoded[at : at + SLICE])
            self.pending = self._decoder.is_full or bool(self._waiting)
        return b""

    def _give_up(self) -> None:
        self._decoder, self._waiting, self.pending = None, b"", False

    def finish(self) -> bytes:
        """Read the decoded body's end."""
        while self.pending:
            self.resume()
        self._inner.finish()
        self.summary.finished = self.summary.finished or self._decoder is None  # as far as can be told
        return b""

    def abandon(self) -> bool:
        """No event of ours could follow inside an encoded body."""
        self.pending = False
        self._inner.abandon()
        return False


def open_meter(
    *,
    content_type: str | None,
    content_encoding: str | None,
    strip: bool,
    before_done: BeforeDone | None = None,
) -> Meter:
    """The meter for a reply, which goes by what it begins with, and else by its content type.

    `strip` says that what `include_usage` causes is ours to remove.
    `before_done` makes bytes to be put in front of `[DONE]`. A content-encoding passes untouched.
    """
    is_document = (content_type or "").partition(";")[0].strip().lower() != "text/event-stream"
    encoding = (content_encoding or "identity").strip().lower()
    if encoding != "identity":
        return DecodingMeter(EventMeter(ReplySummary(), document=is_document), encoding)
    return EventMeter(ReplySummary(), strip=strip, before_done=before_done, document=is_document)
