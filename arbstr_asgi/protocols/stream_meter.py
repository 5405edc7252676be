"""Meters a response body that is an event stream or, by its first bytes, one JSON document."""

from arbstr_asgi.protocols.body_meter import PlainMeter
from arbstr_asgi.protocols.incremental_json import LargeEvent
from arbstr_asgi.protocols.json_edit import BOM, without_null_usage, without_usage
from arbstr_asgi.protocols.meter import BeforeDone, report_failure
from arbstr_asgi.protocols.reply import Chunk, ReplySummary, decode, is_usage_only, may_have_null_usage
from arbstr_asgi.protocols.sse import (
    BLANK_LINES,
    BLOCK_END,
    COMMENTS,
    DATA_FIELD,
    LINE_BREAK,
    LINE_END,
    parse_block,
    without_data,
)
from arbstr_asgi.protocols.stream_fast_path import EventTemplate, FastPath

MAX_EVENT_BYTES = 1024 * 1024  # buffered; a larger event passes unchanged, and is only parsed
MAX_DECODE_BYTES = 64 * 1024  # of an event that is decoded at once; a larger one is parsed incrementally
SLICE_BYTES = 16 * 1024  # of a chunk that is parsed per call of `feed` or `resume`
MAX_SNIFF_BYTES = 1024  # of leading white space

_BLANK_OR_COMMENT = (b"\n", b"\r", b":")
_LINE_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")


class EventMeter:
    """Meters an event stream. Without `strip` and `before_done`, `feed` returns the same chunk object.

    A body that begins like a JSON object is parsed as one; with `expect_document`, any that does not begin like events.
    A block is the lines up to a blank line; for a provider that sends no blank lines, a line. `_buffer` holds the bytes
    that are not processed yet; its first `_sent` bytes have been sent already.
    """

    __slots__ = (
        "_abandon_result",
        "_after_comment",
        "_at_start",
        "_before_done",
        "_block_partly_sent",
        "_body_meter",
        "_buffer",
        "_drop_blank_line",
        "_drop_lf",
        "_event_per_line",
        "_expect_document",
        "_failed",
        "_fast_path",
        "_fast_path_ready",
        "_has_cr",
        "_has_ended",
        "_is_multi_line",
        "_large_event",
        "_line_start",
        "_may_have_bom",
        "_oversized",
        "_pass_lf",
        "_pending_data",
        "_pending_offset",
        "_searched",
        "_second_data_line",
        "_sent",
        "_strip",
        "_template",
        "_trimmed",
        "edits",
        "pending",
        "summary",
    )

    def __init__(
        self,
        summary: ReplySummary,
        *,
        strip: bool = False,
        before_done: BeforeDone | None = None,
        expect_document: bool = False,
    ) -> None:
        self.summary = summary
        self._strip = strip
        self._before_done = before_done
        self.edits = strip or before_done is not None
        self.pending = False
        self._pending_data = b""
        self._pending_offset = 0  # of the first byte of `_pending_data` that is not parsed
        self._buffer = bytearray()
        self._sent = 0
        self._searched = 0  # offset in the buffer before which no block ends
        self._fast_path = FastPath(summary, strip=strip)
        self._fast_path_ready = False  # model, id and first content are known
        self._template: EventTemplate | None = None  # the fast path's, while no block is buffered
        self._has_cr = False
        self._expect_document = expect_document
        self._body_meter: PlainMeter | None = None
        self._at_start = self._may_have_bom = True
        self._event_per_line = False  # the provider sends no blank lines between events
        self._line_start = 0  # offset of the current line in its block, if `_event_per_line`
        self._second_data_line = 0  # its offset in the current block, 0 if not found
        self._is_multi_line = False  # the current event has several data lines
        self._after_comment = False  # comments of the current block were sent
        self._large_event: LargeEvent | None = None  # the current block, above MAX_DECODE_BYTES
        self._oversized = False  # the current block exceeds MAX_EVENT_BYTES
        self._trimmed = 0  # bytes of the current block that were removed from the buffer
        self._drop_lf = self._pass_lf = False  # the removed or sent event ended with CR; its LF may follow
        self._block_partly_sent = False  # only if `_event_per_line`
        self._drop_blank_line = False  # the block was removed whole; only if `_event_per_line`
        self._has_ended = self._failed = False
        self._abandon_result: bool | None = None

    def feed(self, chunk: bytes) -> bytes:
        """The bytes for the client after this chunk; if `pending` is set, those of its first slice."""
        try:
            if self._template is not None:
                output = self._template.match(chunk)
                if output is not None:
                    self.summary.events += 1
                    return output
            if self._failed:
                return chunk
            if len(chunk) > SLICE_BYTES or self.pending:
                self._pending_data, self._pending_offset = self._pending_data[self._pending_offset :] + chunk, 0
                self.pending = True
                out = self.resume()
            else:
                out = self._feed(chunk)
                self._template = None if self._is_holding else self._fast_path.template
        except Exception as error:  # noqa: BLE001 - whatever is wrong with us, the stream goes on
            out = self._fail(error, chunk)
        return out if self.edits else chunk

    def resume(self) -> bytes:
        """Parse the next slice of the pending data; returns the further bytes for the client."""
        part = self._pending_data[self._pending_offset : self._pending_offset + SLICE_BYTES]
        self._pending_offset += len(part)
        if self._pending_offset == len(self._pending_data):
            self._pending_data, self._pending_offset, self.pending = b"", 0, False
        try:
            out = self._feed(part)
            self._template = None if self.pending or self._is_holding else self._fast_path.template
        except Exception as error:  # noqa: BLE001
            out = self._fail(error, part)
        return out if self.edits else b""

    def _fail(self, error: Exception, data: bytes) -> bytes:
        """Metering has failed: pass what is buffered, and all that follows, unchanged."""
        report_failure(error)
        out = (bytes(self._buffer[self._sent :]) or data) + self._pending_data[self._pending_offset :]
        self._failed, self._template = True, None
        self._pending_data, self._pending_offset, self.pending = b"", 0, False
        self._buffer.clear()
        return out

    def _feed(self, data: bytes) -> bytes:
        if self._fast_path_ready and not self._is_holding:
            output = self._fast_path.events(data) or self._fast_path.event(data)
            if output is not None:
                return output
        if self._body_meter is not None:
            self._body_meter.feed(data)
            return data
        self._buffer += data
        self._has_cr = self._has_cr or b"\r" in data
        return self._detect_kind() if self._at_start else self._process_buffer()

    @property
    def _is_holding(self) -> bool:
        """Whether the next bytes belong to a block that has begun."""
        return bool(self._buffer or self._event_per_line or self._after_comment or self._drop_lf)

    def finish(self) -> bytes:
        """Process a last event without its blank line; returns the remaining bytes."""
        out = b""
        while self.pending:
            out += self.resume()
        if self._body_meter is None and self._at_start and self._expect_document:
            self._at_start = False
            self._body_meter = PlainMeter(self.summary)
            self._body_meter.feed(bytes(self._buffer))
            out += self._buffer
            self._buffer.clear()
        if self._body_meter is not None:
            self._body_meter.finish()
            return out if self.edits else b""
        if self._buffer and not self._failed:
            try:
                out += self._process_last()
            except Exception as error:  # noqa: BLE001
                report_failure(error)
                out += self._buffer[self._sent :]
            self._buffer.clear()
        self.summary.end()
        return out if self.edits else b""

    def abandon(self) -> bool:
        """Parse an event that lacks only its blank line, and drop buffered bytes. Idempotent.

        True if the client is between two events.
        """
        if self._abandon_result is None:
            self._abandon_result = self._drop_buffered()
        return self._abandon_result

    def _drop_buffered(self) -> bool:
        self.pending = False
        if self._body_meter is not None:
            self._body_meter.abandon()
            return False
        buffered, self._buffer = bytes(self._buffer), bytearray()
        if self._failed:
            return False
        try:
            self._read_partial_event(buffered)
        except Exception as error:  # noqa: BLE001
            report_failure(error)
        if self._oversized or (self._at_start and self._expect_document):
            return False
        return not buffered or (self.edits and not self._sent)

    def _read_partial_event(self, buffered: bytes) -> None:
        chunk = decode(parse_block(buffered).data or b"") if self._large_event is None else self._large_event.chunk()
        if chunk is not None and not self.summary.seen_done:
            self.summary.update(chunk)

    def _detect_kind(self) -> bytes:
        """Decide between event stream and JSON document; returns the bytes for the client."""
        buffer, at = self._buffer, 0
        if self._may_have_bom:
            if len(buffer) < len(BOM) and BOM.startswith(buffer):
                return b""
            self._may_have_bom = False
            at = len(BOM) if buffer.startswith(BOM) else 0
        blank = BLANK_LINES.match(buffer, at)
        assert blank is not None
        out = bytes(buffer[: blank.end()])
        del buffer[: blank.end()]
        is_document = self._is_document()
        if is_document is None:
            return out
        self._at_start = False
        if not is_document:
            return out + self._process_buffer()
        self._body_meter = PlainMeter(self.summary)
        buffered = bytes(buffer)
        buffer.clear()
        self._body_meter.feed(buffered)
        return out + buffered

    def _is_document(self) -> bool | None:
        """Whether the body is one JSON document, by its first bytes; None while those are too few."""
        start = bytes(self._buffer[:MAX_SNIFF_BYTES])
        stripped = start.lstrip(b" \t\r\n")
        if stripped.startswith(b"{"):
            return True
        if not self._expect_document:
            return None if not stripped and len(start) < MAX_SNIFF_BYTES else False
        if not start or any(field.startswith(start) for field in _LINE_STARTS if field != start):
            return None
        return not start.startswith(_LINE_STARTS)

    def _process_buffer(self) -> bytes:
        """Process all complete blocks in the buffer."""
        out: list[bytes | bytearray] = []
        while self._process_blocks(out):
            pass
        return b"".join(out)

    def _process_blocks(self, out: list[bytes | bytearray]) -> bool:
        """Process complete blocks. True if `_event_per_line` was detected: the buffer must be processed again."""
        buffer, at = self._buffer, 0
        if (self._drop_lf or self._pass_lf) and buffer:
            at = int(buffer.startswith(b"\n"))
            out.append(buffer[: at if self._pass_lf else 0])
            self._drop_lf = self._pass_lf = False
        while True:
            if self._drop_blank_line and at < len(buffer):
                at = self._skip_blank_line(at)
            sent_to = self._skip_blank_lines_and_comments(at)
            out.append(buffer[max(at, self._sent) : sent_to])
            if sent_to > at:
                self._block_partly_sent, self._line_start = self._after_comment, 0
            at = max(at, sent_to)
            end = self._line_event_end(at) if self._event_per_line else self._block_end(at)
            if end < 0:
                break
            out.append(self._process_block(bytes(buffer[at:end]), max(self._sent - at, 0)))
            at = self._searched = end
            self._is_multi_line, self._second_data_line = False, 0
            self._drop_lf = self._drop_lf and at == len(buffer)  # no LF followed
            self._pass_lf = self._event_per_line and not self._drop_lf and at == len(buffer) and buffer.endswith(b"\r")
        del buffer[:at]
        self._sent = max(self._sent - at, 0)
        self._searched = max(len(buffer) - 4, 0)
        again = (self._large_event is not None or len(buffer) > MAX_DECODE_BYTES) and self._feed_large(0, len(buffer))
        if not again and (self._oversized or len(buffer) > MAX_EVENT_BYTES):
            out.append(self._pass_oversized())
        return again

    def _skip_blank_line(self, at: int) -> int:
        """The offset behind the blank line of a removed block, if there is one at `at`."""
        self._drop_blank_line = False
        match = LINE_BREAK.match(self._buffer, at)
        if match is None:
            return at
        self._drop_lf = match.group() == b"\r" and match.end() == len(self._buffer)
        return match.end()

    def _block_end(self, at: int) -> int:
        """The end of the block that begins at `at`, -1 if incomplete. Detects `_event_per_line`."""
        searched = max(at, self._searched)
        if not self._has_cr:  # leading blank lines are removed, so the first two LFs are the end
            found = self._buffer.find(b"\n\n", searched)
            end = found + 2 if found >= 0 else -1
        else:
            match = BLOCK_END.search(self._buffer, searched)
            end = match.end() if match else -1
        if end >= 0 and (self._large_event is not None or end - at > MAX_DECODE_BYTES):
            return self._line_event_end(at) if self._feed_large(at, end) else end
        limit = len(self._buffer) if end < 0 else end
        if self._is_multi_line or self._large_event is not None or limit - at > MAX_DECODE_BYTES:
            return end
        second = at + self._second_data_line
        if not self._second_data_line:
            first = at if self._buffer.startswith(DATA_FIELD, at) else self._next_data_line(at, limit)
            second = self._next_data_line(max(first, searched - len(DATA_FIELD)), limit) if first >= 0 else -1
            self._second_data_line = max(second - at, 0)
        following = LINE_END.search(self._buffer, max(second, self._searched), limit) if second >= 0 else None
        if second < 0 or (following is None and not self._has_ended):
            return end
        second_end = following.start() if following else limit
        self._event_per_line = self._is_complete_event(at, second) and self._is_complete_event(second, second_end)
        self._is_multi_line = not self._event_per_line
        self._searched = at
        return self._line_event_end(at) if self._event_per_line else end

    def _next_data_line(self, at: int, limit: int) -> int:
        """The offset of the next data line that follows a line break, else -1."""
        found = self._buffer.find(b"\ndata:", at, limit)
        if self._has_cr:
            other = self._buffer.find(b"\rdata:", at, limit)
            found = other if found < 0 or 0 <= other < found else found
        return found + 1 if found > 0 else -1

    def _is_complete_event(self, at: int, end: int) -> bool:
        """Whether the data of these lines is an event: a JSON object or `[DONE]`."""
        data = parse_block(bytes(self._buffer[at:end])).data or b""
        return data.strip().startswith(b"[DONE]") or decode(data) is not None

    def _line_event_end(self, at: int) -> int:
        """The end of the next data line or of a blank line in front of it, -1 if incomplete."""
        buffer, line = self._buffer, at + self._line_start
        while (match := LINE_BREAK.search(buffer, max(line, self._searched))) is not None:
            if self._oversized or match.start() == line or buffer.startswith(DATA_FIELD, line):
                self._line_start = 0
                return match.end()
            line = match.end()
        self._line_start = line - at
        return len(buffer) if self._has_ended and at < len(buffer) else -1

    def _skip_blank_lines_and_comments(self, at: int) -> int:
        """The offset behind blank lines and comments in front of an event; those are sent at once."""
        buffer = self._buffer
        if self._oversized or self._sent > at or buffer[at : at + 1] not in _BLANK_OR_COMMENT:
            return at
        while True:
            blank = BLANK_LINES.match(buffer, at)
            assert blank is not None
            if blank.end() > at:
                self._after_comment = False
            # An incomplete comment line is not searched again from its start with each chunk.
            at = blank.end()
            if LINE_END.search(buffer, max(at, self._searched)) is None:
                return at
            comments = COMMENTS.match(buffer, at)
            if comments is None:
                return at
            self._after_comment = True
            at = comments.end()

    def _feed_large(self, at: int, end: int) -> bool:
        """Parse what has arrived of a large block. True if `_event_per_line` was detected."""
        large_event = self._large_event = self._large_event or LargeEvent()
        second = large_event.feed(bytes(self._buffer[at + large_event.bytes_fed - self._trimmed : end]))
        if second is None or self._event_per_line:
            return False
        self._event_per_line = True
        self._searched = at + (second - self._trimmed - 2 if self._oversized else 0)
        return True

    def _pass_oversized(self) -> bytes:
        """Pass on a block that exceeds MAX_EVENT_BYTES, and go on to search for its end."""
        buffer = self._buffer
        out = bytes(buffer[self._sent :])
        self._trimmed += len(buffer[:-8])
        del buffer[:-8]
        self._sent = len(buffer)
        self._searched = 0
        self._oversized = True
        self._mark_started()
        return out

    def _process_block(self, block: bytes, sent: int) -> bytes:
        """The bytes for the client of a complete block whose first `sent` bytes were sent."""
        after_comment, self._after_comment = self._after_comment, False
        if self._large_event is not None or len(block) > MAX_DECODE_BYTES:
            out: bytes | None = self._process_large_block(block)[sent:]
        else:
            use_fast_path = self._fast_path_ready and not (after_comment or self._event_per_line)
            out = self._fast_path.event(block) if use_fast_path else None
            if out is None:
                out = self._process_event(block)
        is_removed = out is None
        if out is None:
            out = without_data(block, after_comment=after_comment)
            self._drop_lf = block.endswith(b"\r") and not out.endswith(b"\r")
        if self._event_per_line:
            self._block_partly_sent = self._block_partly_sent or not is_removed or bool(out)
            self._drop_blank_line = not self._block_partly_sent
        return out

    def _process_large_block(self, block: bytes) -> bytes:
        """Process a block above MAX_DECODE_BYTES; returns its bytes without the usage that we asked for."""
        large_event = self._large_event or LargeEvent()
        is_buffered = not self._oversized and len(block) <= MAX_EVENT_BYTES
        large_event.feed(block[large_event.bytes_fed - self._trimmed :])
        self._large_event, self._trimmed, self._oversized = None, 0, False
        self._mark_started()
        chunk, data_lines = large_event.chunk(), large_event.data_lines
        if data_lines.lines and not self.summary.seen_done:
            self._update_summary(chunk, b"")
        if chunk is None or not (self._strip and is_buffered and data_lines.lines == 1):
            return block
        data = block[data_lines.start : data_lines.end]
        if chunk.usage is None:
            data = without_null_usage(data)
        elif isinstance(chunk.usage, dict) and not chunk.choices and chunk.error is None:
            data = without_usage(data)
        return block[: data_lines.start] + data + block[data_lines.end :]

    def _mark_started(self) -> None:
        """A large event is content, such as an image."""
        self.summary.started = self.summary.started or not self.summary.seen_done

    def _process_last(self) -> bytes:
        """Process a last block that has no blank line."""
        self._has_ended = True
        out = self._process_buffer()
        buffer = bytes(self._buffer)
        if not buffer:
            return out
        if self._large_event is not None:
            return out + self._process_large_block(buffer)[self._sent :]
        last = self._process_event(buffer)
        return out + (without_data(buffer, after_comment=self._after_comment) if last is None else last)

    def _process_event(self, block: bytes) -> bytes | None:
        """Process one event; returns its bytes without what we asked for, or None if that is all of it."""
        parsed = parse_block(block)
        if parsed.bare_error is not None and not self.summary.seen_done:
            self.summary.error = "error"
        if parsed.data is None or parsed.data.strip().startswith(b"[DONE]"):
            return block if parsed.data is None else self._process_done(block)
        chunk = decode(parsed.data)
        usage_only = chunk is not None and is_usage_only(chunk, choices_finished=self.summary.choices_finished)
        if not self.summary.seen_done:
            self._update_summary(chunk, parsed.event)
        if chunk is None or not self._strip:
            return block
        if usage_only and not chunk.has_other_members:
            return None
        data = parsed.data
        if usage_only and parsed.start >= 0:
            data = without_usage(data)
        elif parsed.start >= 0 and may_have_null_usage(chunk, data):
            data = without_null_usage(data)
        return block if data is parsed.data else block[: parsed.start] + data + block[parsed.end :]

    def _update_summary(self, chunk: Chunk | None, event: bytes) -> None:
        summary = self.summary
        summary.events += 1
        if chunk is not None:
            tier = summary.service_tier
            summary.update(chunk, event)
            if summary.service_tier != tier:  # the template has the former tier
                self._fast_path.template = None
            self._fast_path_ready = summary.started and summary.model is not None and summary.id is not None
        elif event == b"error":
            summary.error = summary.error or "error"

    def _process_done(self, block: bytes) -> bytes:
        if self.summary.seen_done:
            return block
        self.summary.events += 1
        self.summary.seen_done = True
        self.summary.end()
        self._fast_path_ready = False
        self._fast_path.template = None
        return block if self._before_done is None else self._before_done(self.summary) + block
