"""Parses server-sent events as bytes: the end of a block of lines, and the fields in it.

The format is that of the WHATWG HTML standard: lines end with CRLF, LF or CR, in any mix; a blank line dispatches the
event; a line that begins with a colon is a comment.
"""

import re
from typing import NamedTuple

# Atomic, so that a CRLF is never read as two line ends. The byte in front keeps a flood of blank lines from matching.
BLOCK_END = re.compile(rb"[^\r\n](?>\r\n|\n|\r)(?>\r\n|\n|\r)")
LINE_END = re.compile(rb"[\r\n]")
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
