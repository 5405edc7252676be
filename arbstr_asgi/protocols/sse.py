"""Parses server-sent events as bytes: the end of a block of lines, and the fields in it.

The format is that of the WHATWG HTML standard: lines end with CRLF, LF or CR, in any mix; a blank line dispatches the
event; a line that begins with a colon is a comment.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

# Atomic, so that a CRLF is never read as two line ends. The byte in front keeps a flood of blank lines from matching.
BLOCK_END = re.compile(rb"[^\r\n](?>\r\n|\n|\r)(?>\r\n|\n|\r)")
LINE_END = re.compile(rb"[\r\n]")
LINE_BREAK = re.compile(rb"\r\n|\n|\r")
DATA_FIELD = b"data:"
BLANK_LINES = re.compile(rb"[\r\n]*")
# A comment that is complete for certain: behind a CR, the next byte must be known not to be its LF.
COMMENTS = re.compile(rb"(?::[^\r\n]*(?:\r\n|\n|\r(?=[^\n])))+")
_LINE = re.compile(rb"([^\r\n]*)(?>\r\n|\n|\r|\Z)")


class Block(NamedTuple):
    """The fields of one block.

    `data` is None when the block has no data line, so that no event is dispatched. `start` and `end` are the range of
    `data` in the block where there is exactly one data line, else -1. `bare_error` is the value of a field called
    `error`, which is not in the standard; GPUStack sends it.
    """

    data: bytes | None
    start: int
    end: int
    event: bytes
    bare_error: bytes | None


def parse_block(block: bytes) -> Block:
    """Parse one block of lines, with or without its closing blank line."""
    lines: list[tuple[int, int]] = []
    event, bare_error = b"", None
    at = 0
    while at < len(block):
        match = _LINE.match(block, at)
        assert match is not None
        field, start = _field(block, at, match.end(1))
        if field == b"data":
            lines.append((start, match.end(1)))
        elif field == b"event":
            event = block[start : match.end(1)]
        elif field == b"error":
            bare_error = block[start : match.end(1)]
        at = match.end()
    if len(lines) == 1:
        start, end = lines[0]
        return Block(block[start:end], start, end, event, bare_error)
    data = b"\n".join(block[start:end] for start, end in lines) if lines else None
    return Block(data, -1, -1, event, bare_error)


def without_data(block: bytes, *, after_comment: bool = False) -> bytes:
    """A block without its event: its comments and the blank line behind them, or nothing.

    `after_comment`: comments in front of the block were parsed as part of it.
    """
    lines_kept: list[bytes] = []
    at = 0
    while at < len(block):
        match = _LINE.match(block, at)
        assert match is not None
        if block.startswith(b":", at) or ((lines_kept or after_comment) and not match.group(1)):
            lines_kept.append(match.group())
        at = match.end()
    return b"".join(lines_kept)


def _field(block: bytes, start: int, end: int) -> tuple[bytes, int]:
    """The field name of a line, and the offset of its value."""
    colon = block.find(b":", start, end)
    if colon < 0:
        return block[start:end], end
    value = colon + 2 if block.startswith(b" ", colon + 1) and colon + 1 < end else colon + 1
    return block[start:colon], value


class DataLines:
    """Parses a block piece by piece, and passes its data to `on_data`, the lines joined by line feeds.

    `lines` is the number of data lines, `start` and `end` are the range of the first one's data in the block.
    """

    def __init__(self, on_data: Callable[[bytes], None]) -> None:
        self.lines = self.start = self.end = 0
        self._on_data = on_data
        self._is_data: bool | None = None  # of the current line; None: its field name is incomplete
        self._partial_line = b""
        self._partial_offset = 0  # its offset in the block

    def feed(self, piece: bytes, is_complete: Callable[[], bool]) -> int | None:
        """Parse the next piece. Stops at a further data line if the data before it `is_complete`: returns its offset in
        the block, else None."""
        data, at = self._partial_line + piece, 0
        while at < len(data):
            if self._is_data is None:
                if data[at] in b"\r\n":
                    at += 1
                    continue
                if len(data) - at <= len(DATA_FIELD) and LINE_END.search(data, at) is None:
                    break
                self._is_data = data.startswith(DATA_FIELD, at)
                if self._is_data:
                    if self.lines and is_complete():
                        return self._partial_offset + at
                    at = self._data_begins(data, at)
            match = LINE_END.search(data, at)
            end = match.start() if match else len(data)
            if self._is_data:
                self._on_data(data[at:end])
                if self.lines == 1:
                    self.end = self._partial_offset + end
            at = end
            if match:
                self._is_data = None
        self._partial_line = data[at:]
        self._partial_offset += at
        return None

    def _data_begins(self, data: bytes, at: int) -> int:
        """Start a data line at `at`; returns the offset of its data."""
        at += len(DATA_FIELD) + data.startswith(b" ", at + len(DATA_FIELD))
        self.lines += 1
        if self.lines == 1:
            self.start = self.end = self._partial_offset + at
        else:
            self._on_data(b"\n")
        return at
