"""Meters a response body that is one JSON document."""

from arbstr_asgi.protocols.incremental_json import IncrementalReader
from arbstr_asgi.protocols.json_edit import BOM
from arbstr_asgi.protocols.meter import report_failure
from arbstr_asgi.protocols.reply import ReplySummary, decode

MAX_PLAIN_BYTES = 32 * 1024 * 1024  # of a body that is buffered until its cost is known
PIECE_BYTES = 64 * 1024
MAX_COPY_BYTES = 64 * 1024  # of a body that is parsed at its end; a larger one is parsed incrementally


class PlainMeter:
    """Passes the body unchanged. Parses a copy at its end, or parses incrementally if the body is large."""

    def __init__(self, summary: ReplySummary) -> None:
        self.summary = summary
        self._copy = bytearray()
        self._reader: IncrementalReader | None = None
        self._failed = False

    def feed(self, chunk: bytes) -> bytes:
        """Returns the chunk unchanged."""
        if self._failed:
            return chunk
        try:
            if self._reader is not None:
                self._reader.feed(chunk)
            elif len(self._copy) + len(chunk) <= MAX_COPY_BYTES:
                self._copy += chunk
            else:
                self._start_reader(chunk)
        except Exception as error:  # noqa: BLE001 - a bug of ours is not the client's business
            self._fail(error)
        return chunk

    def finish(self) -> bytes:
        """Parse the body; returns b""."""
        self.summary.finished = self._failed or (
            self._reader is not None and self._reader.gave_up
        )  # unknown, so not incomplete
        self._read()
        return b""

    def abandon(self) -> None:
        """Parse the body in case it is complete."""
        self._read()

    def _start_reader(self, chunk: bytes) -> None:
        """The body exceeds MAX_COPY_BYTES: parse the copy, and all that follows, incrementally."""
        self._reader = IncrementalReader()
        beginning = bytes(self._copy) + chunk[: len(BOM)]
        self._copy.clear()
        self._reader.feed(beginning.removeprefix(BOM))
        for offset in range(len(BOM), len(chunk), PIECE_BYTES):  # a host's transport may yield the whole body at once
            self._reader.feed(chunk[offset : offset + PIECE_BYTES])

    def _read(self) -> None:
        try:
            document = bytes(self._copy).removeprefix(BOM) if self._reader is None else self._reader.finish()
            body = decode(document) if document else None
            if body is not None:
                if self._reader is not None:  # a large body has content, also where no field for it was extracted
                    self.summary.started, body.has_other_members = True, body.has_no_content
                self.summary.update_body(body)
        except Exception as error:  # noqa: BLE001
            self._fail(error)
        self._copy.clear()

    def _fail(self, error: Exception) -> None:
        report_failure(error)
        self._failed = True
        self._reader = None
        self._copy.clear()
