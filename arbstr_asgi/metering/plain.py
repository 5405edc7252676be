"""Meters a body that is one JSON document."""

from arbstr_asgi.metering.meter import report_failure
from arbstr_asgi.metering.reading import Reading, decode
from arbstr_asgi.spans import BOM

MAX_PLAIN_BYTES = 32 * 1024 * 1024  # of a body, kept to be read at its end


class PlainMeter:
    """Passes a body and keeps a copy, which is read at its end."""

    edits = False

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self._copy = bytearray()
        self._whole = True

    def feed(self, chunk: bytes) -> bytes:
        """Everything passes."""
        if self._whole:
            self._copy += chunk
            if len(self._copy) > MAX_PLAIN_BYTES:
                self._whole = False
                self._copy.clear()
        return chunk

    def finish(self) -> bytes:
        """Read the body."""
        try:
            self.reading.complete = not self._whole  # as far as can be told
            body = decode(bytes(self._copy).removeprefix(BOM)) if self._whole else None
            if body is not None:
                self.reading.learn_body(body)
        except Exception as error:  # noqa: BLE001 - a bug of ours is not the client's business
            report_failure(error)
        self._copy.clear()
        return b""

    def abandon(self) -> bool:
        """Part of a body is out, and nothing can follow it."""
        return False
