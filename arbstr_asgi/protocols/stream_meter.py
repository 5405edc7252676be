"""Meters a reply by what it is: an event stream, or one JSON document."""

from arbstr_asgi.protocols.body_meter import PlainMeter
from arbstr_asgi.protocols.incremental_json import LargeEvent
from arbstr_asgi.protocols.json_edit import BOM, without_null_usage, without_usage
from arbstr_asgi.protocols.meter import BeforeDone, report_failure
from arbstr_asgi.protocols.reply import Chunk, ReplySummary, decode, is_for_usage_alone, may_have_null_usage
from arbstr_asgi.protocols.sse import (
    BLANK_LINES,
    BLOCK_END,
    COMMENTS,
    DATA,
    LINE_END,
    WHOLE_LINE_END,
    parse_block,
    without_data,
)
from arbstr_asgi.protocols.stream_fast_path import EventTemplate, FastPath

MAX_EVENT_BYTES = 1024 * 1024  # held; a larger event passes untouched, and is only read
AT_ONCE = 64 * 1024  # of an event that is decoded in one go; a larger one is read as it comes
SLICE = 16 * 1024  # of a chunk that is read in one go
MAX_START = 1024  # blanks in front of a document

_BETWEEN = (b"\n", b"\r", b":")  # what blank lines and comments begin with
_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")


class EventMeter:
    """Meters an event stream. Without `strip` and `before_done`, `feed` gives back the very chunk it was given.

    What begins like a JSON document is read as one; with `document`, everything but what begins like events is.
    `_tail` is what has come and is not done with; its first `_passed` bytes are out already.
    """

    __slots__ = (
        "_abandoned",
        "_before_done",
        "_by_line",
        "_commented",
        "_cut",
        "_document",
        "_drop_blank",
        "_drop_lf",
        "_expects_document",
        "_failed",
        "_has_cr",
        "_has_ended",
        "_is_beginning",
        "_is_lean",
        "_is_multi_line",
        "_is_open",
        "_large",
        "_lean",
        "_line",
        "_may_have_bom",
        "_oversized",
        "_pass_lf",
        "_passed",
        "_searched",
        "_second",
        "_strip",
        "_tail",
        "_usual",
        "_waited",
        "_waiting",
        "edits",
        "pending",
        "summary",
    )

    def __init__(
        self,
        reading: ReplySummary,
        *,
        strip: bool = False,
        before_done: BeforeDone | None = None,
        document: bool = False,
    ) -> None:
        self.summary = reading
        self._strip = strip
        self._before_done = before_done
        self.edits = strip or before_done is not None
        self.pending = False
        self._waiting = b""  # what is pending
        self._waited = 0  # how much of it has been read
        self._tail = bytearray()
        self._passed = 0
        self._searched = 0
        self._lean = FastPath(reading, strip=strip)
        self._is_lean = False  # what is to be learned of every stream is known
        self._usual: EventTemplate | None = None  # the lean events', while nothing is held
        self._has_cr = False
        self._expects_document = document
        self._document: PlainMeter | None = None
        self._is_beginning = self._may_have_bom = True
        self._by_line = False  # events end with their line: the provider sends no blank ones
        self._line = 0  # where the line at hand begins in its block, where events are lines
        self._second = 0  # where the second data line of the block at hand begins in it
        self._is_multi_line = False  # the event at hand is known to go on over lines
        self._commented = False  # comments of the block at hand are out
        self._large: LargeEvent | None = None  # the block at hand, if it is large
        self._oversized = False  # the block at hand is too large to be held
        self._cut = 0  # how much of it is not in the tail any more
        self._drop_lf = self._pass_lf = False  # the event that went, or passed, ended with a CR, whose LF may follow
        self._is_open = False  # part of the block at hand is out, where events are lines
        self._drop_blank = False  # all of it has gone, where events are lines: the blank line goes, too
        self._has_ended = self._failed = False
        self._abandoned: bool | None = None  # what was said of it

    def feed(self, chunk: bytes) -> bytes:
        """What the client gets for `chunk`; if something is pending, the first part of it."""
        try:
            if self._usual is not None:
                usual = self._usual.match(chunk)
                if usual is not None:
                    self.summary.events += 1
                    return usual
            if self._failed:
                return chunk
            if len(chunk) > SLICE or self.pending:
                self._waiting, self._waited = self._waiting[self._waited :] + chunk, 0
                self.pending = True
                out = self.resume()
            else:
                out = self._feed(chunk)
                self._usual = None if self._holds else self._lean.template
        except Exception as error:  # noqa: BLE001 - whatever is wrong with us, the stream goes on
            out = self._fail(error, chunk)
        return out if self.edits else chunk

    def resume(self) -> bytes:
        """Read the next part of what is pending: what more the client gets."""
        part = self._waiting[self._waited : self._waited + SLICE]
        self._waited += len(part)
        if self._waited == len(self._waiting):
            self._waiting, self._waited, self.pending = b"", 0, False
        try:
            out = self._feed(part)
            self._usual = None if self.pending or self._holds else self._lean.template
        except Exception as error:  # noqa: BLE001
            out = self._fail(error, part)
        return out if self.edits else b""

    def _fail(self, error: Exception, data: bytes) -> bytes:
        """Reading has failed: everything passes from now on."""
        report_failure(error)
        out = (bytes(self._tail[self._passed :]) or data) + self._waiting[self._waited :]
        self._failed, self._usual = True, None
        self._waiting, self._waited, self.pending = b"", 0, False
        self._tail.clear()
        return out

    def _feed(self, data: bytes) -> bytes:
        if self._is_lean and not self._holds:
            lean = self._lean.events(data) or self._lean.event(data)
            if lean is not None:
                return lean
        if self._document is not None:
            self._document.feed(data)
            return data
        self._tail += data
        self._has_cr = self._has_cr or b"\r" in data
        return self._begin() if self._is_beginning else self._take()

    @property
    def _holds(self) -> bool:
        """Whether what comes next belongs to something that has come already."""
        return bool(self._tail or self._by_line or self._commented or self._drop_lf)

    def finish(self) -> bytes:
        """Read the last event although its blank line is missing."""
        out = b""
        while self.pending:
            out += self.resume()
        if self._document is None and self._is_beginning and self._expects_document:
            self._is_beginning = False
            self._document = PlainMeter(self.summary)
            self._document.feed(bytes(self._tail))
            out += self._tail
            self._tail.clear()
        if self._document is not None:
            self._document.finish()
            return out if self.edits else b""
        if self._tail and not self._failed:
            try:
                out += self._last()
            except Exception as error:  # noqa: BLE001
                report_failure(error)
                out += self._tail[self._passed :]
            self._tail.clear()
        self.summary.end()
        return out if self.edits else b""

    def abandon(self) -> bool:
        """Learn from an event that is whole but for its end, and drop what is held. To be repeated at will."""
        if self._abandoned is None:
            self._abandoned = self._abandon()
        return self._abandoned

    def _abandon(self) -> bool:
        self.pending = False
        if self._document is not None:
            self._document.abandon()
            return False
        held, self._tail = bytes(self._tail), bytearray()
        if self._failed:
            return False
        try:
            self._learn_from_part(held)
        except Exception as error:  # noqa: BLE001
            report_failure(error)
        if self._oversized or (self._is_beginning and self._expects_document):
            return False
        return not held or (self.edits and not self._passed)

    def _learn_from_part(self, held: bytes) -> None:
        chunk = decode(parse_block(held).data or b"") if self._large is None else self._large.chunk()
        if chunk is not None and not self.summary.seen_done:
            self.summary.update(chunk)

    def _begin(self) -> bytes:
        """Find out what the reply is."""
        tail, at = self._tail, 0
        if self._may_have_bom:
            if len(tail) < len(BOM) and BOM.startswith(tail):
                return b""
            self._may_have_bom = False
            at = len(BOM) if tail.startswith(BOM) else 0
        blank = BLANK_LINES.match(tail, at)
        assert blank is not None
        out = bytes(tail[: blank.end()])
        del tail[: blank.end()]
        is_document = self._is_document()
        if is_document is None:
            return out
        self._is_beginning = False
        if not is_document:
            return out + self._take()
        self._document = PlainMeter(self.summary)
        held = bytes(tail)
        tail.clear()
        self._document.feed(held)
        return out + held

    def _is_document(self) -> bool | None:
        """By what the reply begins with; None where that is too little."""
        start = bytes(self._tail[:MAX_START])
        bare = start.lstrip(b" \t\r\n")
        if bare.startswith(b"{"):
            return True
        if not self._expects_document:
            return None if not bare and len(start) < MAX_START else False
        if not start or any(field.startswith(start) for field in _FIELDS if field != start):
            return None
        return not start.startswith(_FIELDS)

    def _take(self) -> bytes:
        """Work through all events that are complete."""
        out: list[bytes | bytearray] = []
        while self._take_blocks(out):
            pass
        return b"".join(out)

    def _take_blocks(self, out: list[bytes | bytearray]) -> bool:
        """The same; whether to do so again, because it has turned out that events are lines."""
        tail, at = self._tail, 0
        if (self._drop_lf or self._pass_lf) and tail:
            at = int(tail.startswith(b"\n"))
            out.append(tail[: at if self._pass_lf else 0])
            self._drop_lf = self._pass_lf = False
        while True:
            if self._drop_blank and at < len(tail):
                at = self._without_blank(at)
            passing = self._pass_between(at)
            out.append(tail[max(at, self._passed) : passing])
            if passing > at:
                self._is_open, self._line = self._commented, 0
            at = max(at, passing)
            end = self._line_end(at) if self._by_line else self._block_end(at)
            if end < 0:
                break
            out.append(self._block(bytes(tail[at:end]), max(self._passed - at, 0)))
            at = self._searched = end
            self._is_multi_line, self._second = False, 0
            self._drop_lf = self._drop_lf and at == len(tail)  # else no LF followed
            self._pass_lf = self._by_line and not self._drop_lf and at == len(tail) and tail.endswith(b"\r")
        del tail[:at]
        self._passed = max(self._passed - at, 0)
        self._searched = max(len(tail) - 4, 0)
        again = (self._large is not None or len(tail) > AT_ONCE) and self._feed_large(0, len(tail))
        if not again and (self._oversized or len(tail) > MAX_EVENT_BYTES):
            out.append(self._give_up_block())
        return again

    def _without_blank(self, at: int) -> int:
        """The blank line behind what has gone is passed over, if one follows."""
        self._drop_blank = False
        match = WHOLE_LINE_END.match(self._tail, at)
        if match is None:
            return at
        self._drop_lf = match.group() == b"\r" and match.end() == len(self._tail)
        return match.end()

    def _block_end(self, at: int) -> int:
        """Where the block that begins at `at` ends; -1: it has not. Finds out whether events are lines."""
        searched = max(at, self._searched)
        if not self._has_cr:  # blank lines in front are gone already, so the first two LFs are the end
            found = self._tail.find(b"\n\n", searched)
            end = found + 2 if found >= 0 else -1
        else:
            match = BLOCK_END.search(self._tail, searched)
            end = match.end() if match else -1
        if end >= 0 and (self._large is not None or end - at > AT_ONCE):
            return self._line_end(at) if self._feed_large(at, end) else end
        limit = len(self._tail) if end < 0 else end
        if self._is_multi_line or self._large is not None or limit - at > AT_ONCE:
            return end
        second = at + self._second
        if not self._second:
            first = at if self._tail.startswith(DATA, at) else self._data_line(at, limit)
            second = self._data_line(max(first, searched - len(DATA)), limit) if first >= 0 else -1
            self._second = max(second - at, 0)
        following = LINE_END.search(self._tail, max(second, self._searched), limit) if second >= 0 else None
        if second < 0 or (following is None and not self._has_ended):
            return end
        self._by_line = self._is_whole(at, second) and self._is_whole(second, following.start() if following else limit)
        self._is_multi_line = not self._by_line
        self._searched = at
        return self._line_end(at) if self._by_line else end

    def _data_line(self, at: int, limit: int) -> int:
        """Where a data line begins behind another line."""
        found = self._tail.find(b"\ndata:", at, limit)
        if self._has_cr:
            other = self._tail.find(b"\rdata:", at, limit)
            found = other if found < 0 or 0 <= other < found else found
        return found + 1 if found > 0 else -1

    def _is_whole(self, at: int, end: int) -> bool:
        """Whether these lines are an event by themselves."""
        data = parse_block(bytes(self._tail[at:end])).data or b""
        return data.strip().startswith(b"[DONE]") or decode(data) is not None

    def _line_end(self, at: int) -> int:
        """Where the data line ends that comes next, or the blank line in front of it; -1: it has not."""
        tail, line = self._tail, at + self._line
        while (match := WHOLE_LINE_END.search(tail, max(line, self._searched))) is not None:
            if self._oversized or match.start() == line or tail.startswith(DATA, line):
                self._line = 0
                return match.end()
            line = match.end()
        self._line = line - at
        return len(tail) if self._has_ended and at < len(tail) else -1

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

    def _feed_large(self, at: int, end: int) -> bool:
        """Read what there is of a large block; whether it has turned out that events are lines."""
        large = self._large = self._large or LargeEvent()
        second = large.feed(bytes(self._tail[at + large.fed - self._cut : end]))
        if second is None or self._by_line:
            return False
        self._by_line = True
        self._searched = at + (second - self._cut - 2 if self._oversized else 0)
        return True

    def _give_up_block(self) -> bytes:
        """The block is too large to be held: let it pass, and find its end all the same."""
        tail = self._tail
        out = bytes(tail[self._passed :])
        self._cut += len(tail[:-8])
        del tail[:-8]
        self._passed = len(tail)
        self._searched = 0
        self._oversized = True
        self._started()
        return out

    def _block(self, block: bytes, passed: int) -> bytes:
        """What the client gets of a complete block, or line, whose first `passed` bytes it has."""
        commented, self._commented = self._commented, False
        if self._large is not None or len(block) > AT_ONCE:
            out: bytes | None = self._large_block(block)[passed:]
        else:
            out = self._lean.event(block) if self._is_lean and not (commented or self._by_line) else None
            if out is None:
                out = self._event(block)
        is_gone = out is None
        if out is None:
            out = without_data(block, after_comment=commented)
            self._drop_lf = block.endswith(b"\r") and not out.endswith(b"\r")
        if self._by_line:
            self._is_open = self._is_open or not is_gone or bool(out)
            self._drop_blank = not self._is_open
        return out

    def _large_block(self, block: bytes) -> bytes:
        """Learn from a large block, and give back its bytes without a usage that we caused."""
        large, is_held = self._large or LargeEvent(), not self._oversized and len(block) <= MAX_EVENT_BYTES
        large.feed(block[large.fed - self._cut :])
        self._large, self._cut, self._oversized = None, 0, False
        self._started()
        chunk, lines = large.chunk(), large.lines
        if lines.lines and not self.summary.seen_done:
            self._learn(chunk, b"")
        if chunk is None or not (self._strip and is_held and lines.lines == 1):
            return block
        data = block[lines.start : lines.end]
        if chunk.usage is None:
            data = without_null_usage(data)
        elif isinstance(chunk.usage, dict) and not chunk.choices and chunk.error is None:
            data = without_usage(data)
        return block[: lines.start] + data + block[lines.end :]

    def _started(self) -> None:
        """What is so large is an image or the like: content."""
        self.summary.started = self.summary.started or not self.summary.seen_done

    def _last(self) -> bytes:
        """What is left when nothing more comes."""
        self._has_ended = True
        out = self._take()
        tail = bytes(self._tail)
        if not tail:
            return out
        if self._large is not None:
            return out + self._large_block(tail)[self._passed :]
        last = self._event(tail)
        return out + (without_data(tail, after_comment=self._commented) if last is None else last)

    def _event(self, block: bytes) -> bytes | None:
        """Read one event; give back its bytes without what we caused, or None if that is all of it."""
        found = parse_block(block)
        if found.bare_error is not None and not self.summary.seen_done:
            self.summary.error = "error"
        if found.data is None or found.data.strip().startswith(b"[DONE]"):
            return block if found.data is None else self._done(block)
        chunk = decode(found.data)
        is_for_usage = chunk is not None and is_for_usage_alone(chunk, has_stopped=self.summary.has_stopped)
        if not self.summary.seen_done:
            self._learn(chunk, found.event)
        if chunk is None or not self._strip:
            return block
        if is_for_usage and not chunk.says_more:
            return None
        data = found.data
        if is_for_usage and found.start >= 0:
            data = without_usage(data)
        elif found.start >= 0 and may_have_null_usage(chunk, data):
            data = without_null_usage(data)
        return block if data is found.data else block[: found.start] + data + block[found.end :]

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
