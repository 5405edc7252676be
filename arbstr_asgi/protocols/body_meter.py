"""Meters a body that is one JSON document."""

from arbstr_asgi.protocols.incremental_json import IncrementalReader
from arbstr_asgi.protocols.json_edit import BOM
from arbstr_asgi.protocols.meter import report_failure
from arbstr_asgi.protocols.reply import ReplySummary, decode

MAX_PLAIN_BYTES = 32 * 1024 * 1024  # of a body that is held back to be sent behind what it cost
PIECE = 64 * 1024
MAX_COPY_BYTES = 64 * 1024  # of a body that is read at its end; a larger one is read as it comes


class PlainMeter:
    """Passes a body. Reads a copy at its end, or prunes the body as it comes if that is large."""

    def __init__(self, reading: ReplySummary) -> None:
        self.summary = reading
        self._copy = bytearray()
        self._pruner: IncrementalReader | None = None
        self._failed = False

    def feed(self, chunk: bytes) -> bytes:
        """Everything passes."""
        if self._failed:
            return chunk
        try:
            if self._pruner is not None:
                self._pruner.feed(chunk)
            elif len(self._copy) + len(chunk) <= MAX_COPY_BYTES:
                self._copy += chunk
            else:
                self._prune(chunk)
        except Exception as error:  # noqa: BLE001 - a bug of ours is not the client's business
            self._fail(error)
        return chunk

    def _prune(self, chunk: bytes) -> None:
        """The body has become too large to be kept."""
        self._pruner = IncrementalReader()
        start = bytes(self._copy) + chunk[: len(BOM)]
        self._copy.clear()
        self._pruner.feed(start.removeprefix(BOM))
        for at in range(len(BOM), len(chunk), PIECE):  # a chunk of a host's transport may be the whole body
            self._pruner.feed(chunk[at : at + PIECE])

    def finish(self) -> bytes:
        """Read the body."""
        self.summary.finished = self._failed or (self._pruner is not None and self._pruner.gave_up)  # who knows
        self._read()
        return b""

    def abandon(self) -> None:
        """Read the body if all of it has come."""
        self._read()

    def _read(self) -> None:
        try:
            document = bytes(self._copy).removeprefix(BOM) if self._pruner is None else self._pruner.finish()
            body = decode(document) if document else None
            if body is not None:
                self.summary.started = self._pruner is not None  # what is so large has content
                self.summary.update_body(body)
        except Exception as error:  # noqa: BLE001
            self._fail(error)
        self._copy.clear()

    def _fail(self, error: Exception) -> None:
        report_failure(error)
        self._failed = True
        self._pruner = None
        self._copy.clear()
