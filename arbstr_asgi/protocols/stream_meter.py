"""Meters an event stream."""

import msgspec

from arbstr_asgi.protocols.json_edit import BOM, without_null_usage
from arbstr_asgi.protocols.meter import BeforeDone, report_failure
from arbstr_asgi.protocols.reply import Chunk, ReplySummary, decode
from arbstr_asgi.protocols.sse import BLANK_LINES, BLOCK_END, COMMENTS, LINE_END, parse_block, without_data
from arbstr_asgi.protocols.stream_fast_path import EventTemplate, FastPath

MAX_EVENT_BYTES = 1024 * 1024  # held or read; a larger event passes untouched


_BETWEEN = (b"\n", b"\r", b":")  # what blank lines and comments begin with


class EventMeter:
    """Meters an event stream. Without `strip` and `before_done`, `feed` gives back the very chunk it was given.

    `_tail` is what has come and is not done with; its first `_passed` bytes are out already.
    """

    def __init__(self, reading: ReplySummary, *, strip: bool = False, before_done: BeforeDone | None = None) -> None:
        self.summary = reading
        self._strip = strip
        self._before_done = before_done
        self.edits = strip or before_done is not None
        self._tail = bytearray()
        self._passed = 0
        self._searched = 0
        self._lean = FastPath(reading, strip=strip)
        self._is_lean = False  # what is to be learned of every stream is known
        self._usual: EventTemplate | None = None  # the lean events', while nothing is held
        self._has_cr = False
        self._beginning = True
        self._commented = False  # comments of the block at hand are out
        self._oversized = False  # the block at hand is too large to be read
        self._drop_lf = False  # the event that went ended with a CR, whose LF may follow
        self._failed = False

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets for `chunk`."""
        try:
            if self._usual is not None:
                usual = self._usual.match(chunk)
                if usual is not None:
                    self.summary.events += 1
                    return usual
            if self._failed:
                return chunk
            out = self._feed(chunk)
            self._usual = None if self._holds else self._lean.template
        except Exception as error:  # noqa: BLE001 - whatever is wrong with us, the stream goes on
            report_failure(error)
            self._failed = True
            self._usual = None
            out = bytes(self._tail[self._passed :]) or chunk
            self._tail.clear()
        return out if self.edits else chunk

    def _feed(self, chunk: bytes) -> bytes:
        if self._is_lean and not self._holds:
            lean = self._lean.events(chunk) or self._lean.event(chunk)
            if lean is not None:
                return lean
        self._tail += chunk
        self._has_cr = self._has_cr or b"\r" in chunk
        return self._take()

    @property
    def _holds(self) -> bool:
        """Whether what comes next belongs to something that has come already."""
        return bool(self._tail or self._commented or self._drop_lf)

    def finish(self) -> bytes:
        """Read the last event although its blank line is missing."""
        out = b""
        if self._tail and not self._failed:
            try:
                out = self._last()
            except Exception as error:  # noqa: BLE001
                report_failure(error)
                out = bytes(self._tail[self._passed :])
            self._tail.clear()
        self.summary.end()
        return out if self.edits else b""

    def abandon(self) -> bool:
        """Drop what is held."""
        held, self._tail = self._tail, bytearray()
        if self._failed or self._oversized:
            return False
        return not held or (self.edits and not self._passed)

    def _take(self) -> bytes:
        """Work through all blocks that are complete."""
        tail, at = self._tail, 0
        out: list[bytes | bytearray] = []
        if self._beginning:  # a BOM there is no part of the first event
            if len(tail) < len(BOM) and BOM.startswith(tail):
                return b""
            self._beginning = False
            at = len(BOM) if tail.startswith(BOM) else 0
            out.append(tail[:at])
        if self._drop_lf and tail:
            self._drop_lf = False
            at = int(tail.startswith(b"\n"))
        while True:
            passing = self._pass_between(at)
            out.append(tail[max(at, self._passed) : passing])
            at = max(at, passing)
            end = self._block_end(max(at, self._searched))
            if end < 0:
                break
            out.append(self._block(bytes(tail[at:end]), max(self._passed - at, 0)))
            at = self._searched = end
            self._drop_lf = self._drop_lf and at == len(tail)  # else no LF followed
        del tail[:at]
        self._passed = max(self._passed - at, 0)
        self._searched = max(len(tail) - 4, 0)
        if self._oversized or len(tail) > MAX_EVENT_BYTES:
            out.append(self._give_up_block())
        return b"".join(out)

    def _block_end(self, at: int) -> int:
        if not self._has_cr:  # blank lines in front are gone already, so the first two LFs are the end
            found = self._tail.find(b"\n\n", at)
            return found + 2 if found >= 0 else -1
        match = BLOCK_END.search(self._tail, at)
        return match.end() if match else -1

    def _pass_between(self, at: int) -> int:
        """How far blank lines and comments in front of an event go: they are nobody's, and pass at once."""
        tail = self._tail
        if self._oversized or self._passed > at or tail[at : at + 1] not in _BETWEEN:
            return at
        while True:
            blank = BLANK_LINES.match(tail, at)
            assert blank is not None
            if blank.end() > at:
                self._commented = False
            # A comment line that is still to end is not read again from its start with each chunk.
            at = blank.end()
            if LINE_END.search(tail, max(at, self._searched)) is None:
                return at
            comments = COMMENTS.match(tail, at)
            if comments is None:
                return at
            self._commented = True
            at = comments.end()

    def _give_up_block(self) -> bytes:
        """The block is too large: let it pass, and find its end all the same."""
        tail = self._tail
        out = bytes(tail[self._passed :])
        del tail[:-8]
        self._passed = len(tail)
        self._searched = 0
        self._oversized = True
        self._started()
        return out

    def _block(self, block: bytes, passed: int) -> bytes:
        """What the client gets of a complete block whose first `passed` bytes it has."""
        commented, self._commented = self._commented, False
        if self._oversized or len(block) > MAX_EVENT_BYTES:
            self._oversized = False
            self._started()
            return block[passed:]
        out = self._lean.event(block) if self._is_lean and not commented else None
        if out is not None:
            return out
        out = self._event(block)
        if out is None:
            out = without_data(block, commented=commented)
            self._drop_lf = block.endswith(b"\r") and not out.endswith(b"\r")
        return out

    def _started(self) -> None:
        """What is too large to be read is an image or the like: content."""
        self.summary.started = self.summary.started or not self.summary.seen_done

    def _last(self) -> bytes:
        tail = bytes(self._tail)
        if self._oversized or self._passed:
            return tail[self._passed :]
        out = self._event(tail)
        return without_data(tail, commented=self._commented) if out is None else out

    def _event(self, block: bytes) -> bytes | None:
        """Read one event; give back its bytes without what we caused, or None if that is all of it."""
        found = parse_block(block)
        if found.bare_error is not None and not self.summary.seen_done:
            self.summary.error = "error"
        if found.data is None:
            return block
        if found.data.strip().startswith(b"[DONE]"):
            return self._done(block)
        chunk = decode(found.data)
        if not self.summary.seen_done:
            self._learn(chunk, found.event)
        if chunk is None or not self._strip:
            return block
        if is_usage_only(chunk):
            return None
        if found.start < 0 or not may_have_null_usage(chunk, found.data):
            return block
        return block[: found.start] + without_null_usage(found.data) + block[found.end :]

    def _learn(self, chunk: Chunk | None, event: bytes) -> None:
        reading = self.summary
        reading.events += 1
        if chunk is not None:
            tier = reading.service_tier
            reading.update(chunk, event)
            if reading.service_tier != tier:  # an event that says the former one says something new now
                self._lean.template = None
            self._is_lean = reading.started and reading.model is not None and reading.id is not None
        elif event == b"error":
            reading.error = reading.error or "error"

    def _done(self, block: bytes) -> bytes:
        first = not self.summary.seen_done
        if first:
            self.summary.events += 1
            self.summary.seen_done = True
            self.summary.end()
            self._is_lean = False
            self._lean.template = None
        if first and self._before_done is not None:
            return self._before_done(self.summary) + block
        return block


def may_have_null_usage(chunk: Chunk, payload: bytes) -> bool:
    """Whether to look for null members: not in each chunk of a cumulative stream, where `usage` stands once."""
    if chunk.usage is None:
        return True
    return chunk.usage is not msgspec.UNSET and (payload.count(b'"usage"') > 1 or b"\\u00" in payload)


def is_usage_only(chunk: Chunk) -> bool:
    """Whether an event is there for its usage alone: no choices, a usage object, no error."""
    return not chunk.choices and isinstance(chunk.usage, dict) and chunk.error is None
