"""Whether an event stream begins with an error."""

from arbstr_asgi import headers as h
from arbstr_asgi.metering import open_meter
from arbstr_asgi.spans import BOM

MAX_BYTES = 16 * 1024


class FirstEventWatcher:
    """Watches the beginning of a stream with a meter of its own, whose reading says what it was."""

    def __init__(self, headers: h.Headers) -> None:
        self._meter = open_meter(
            content_type=headers.get(b"content-type"), content_encoding=None, streaming=True, strip=False
        )
        self.summary = self._meter.summary
        self._size = 0
        self._begins = b""

    def complete(self, chunk: bytes) -> bool:
        """Whether enough has come with `chunk`: a whole event, a comment, or 16 KiB of anything."""
        self._meter.feed(chunk)
        self._size += len(chunk)
        if not self._begins:
            self._begins = chunk.removeprefix(BOM).lstrip()[:1]
        seen = self.summary.events > 0 or self.summary.error is not None or self.summary.seen_done
        return seen or self._begins == b":" or self._size >= MAX_BYTES

    def end(self) -> None:
        """The stream has ended, perhaps without the blank line behind its only event."""
        self._meter.finish()
