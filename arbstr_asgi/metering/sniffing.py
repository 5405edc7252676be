"""Meters a reply that isn't called an event stream, although one was asked for."""

from arbstr_asgi.metering.events import MAX_EVENT_BYTES, EventMeter
from arbstr_asgi.metering.meter import BeforeDone, Meter
from arbstr_asgi.metering.plain import PlainMeter
from arbstr_asgi.metering.reading import ReplySummary
from arbstr_asgi.spans import BOM


class SniffingMeter:
    """For a reply to a streaming request that isn't called an event stream: its first bytes decide."""

    def __init__(self, *, strip: bool, before_done: BeforeDone | None) -> None:
        self.summary = ReplySummary()
        self.edits = strip or before_done is not None
        self._strip = strip
        self._before_done = before_done
        self._held = b""
        self._inner: Meter | None = None

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets for `chunk`; blank lines in front of everything pass at once."""
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
        """The rest."""
        if self._inner is None:
            self._inner = PlainMeter(self.summary)
            held = self._inner.feed(self._held)
            return (held if self.edits else b"") + self._inner.finish()
        return self._inner.finish()

    def abandon(self) -> bool:
        """Drop what is held."""
        return self._inner is not None and self._inner.abandon()

    def _decide(self, start: bytes) -> Meter | None:
        if len(start) > MAX_EVENT_BYTES:
            return PlainMeter(self.summary)
        begin = start.lstrip(b"\r\n").removeprefix(BOM).lstrip(b"\r\n")
        fields = (b"data:", b"event:", b":")
        if begin.startswith(fields):
            return EventMeter(self.summary, strip=self._strip, before_done=self._before_done)
        undecided = any(field.startswith(begin) for field in fields) or BOM.startswith(begin)
        return None if undecided else PlainMeter(self.summary)
