"""Meters an event stream."""

import msgspec

from arbstr_asgi.protocols.json_edit import BOM, without_null_usage
from arbstr_asgi.protocols.meter import BeforeDone, report_failure
from arbstr_asgi.protocols.reply import Chunk, ReplySummary, decode
from arbstr_asgi.protocols.sse import BLANK_LINES, BLOCK_END, COMMENTS, LINE_END, parse_block, without_data
from arbstr_asgi.protocols.stream_fast_path import EventTemplate, FastPath

MAX_EVENT_BYTES = 1024 * 1024  # a larger event passes unparsed


_BLANK_OR_COMMENT = (b"\n", b"\r", b":")


class EventMeter:
    """Meters an event stream. Without `strip` and `before_done`, `feed` returns the same chunk object.

    `_buffer` holds the bytes that are not processed yet; its first `_sent` bytes have been sent already.
    """

    def __init__(self, summary: ReplySummary, *, strip: bool = False, before_done: BeforeDone | None = None) -> None:
        self.summary = summary
        self._strip = strip
        self._before_done = before_done
        self.edits = strip or before_done is not None
        self._buffer = bytearray()
        self._sent = 0
        self._searched = 0
        self._fast_path = FastPath(summary, strip=strip)
        self._fast_path_ready = False  # model, id and first content are known
        self._template: EventTemplate | None = None  # the fast path's, while no block is buffered
        self._has_cr = False
        self._at_start = True
        self._after_comment = False  # comments of the current block were sent
        self._oversized = False  # the current block exceeds MAX_EVENT_BYTES
        self._drop_lf = False  # the removed event ended with CR; its LF may follow
        self._failed = False

    def feed(self, chunk: bytes) -> bytes:
        """The bytes for the client after this chunk."""
        try:
            if self._template is not None:
                output = self._template.match(chunk)
                if output is not None:
                    self.summary.events += 1
                    return output
            if self._failed:
                return chunk
            out = self._feed(chunk)
            self._template = None if self._is_holding else self._fast_path.template
        except Exception as error:  # noqa: BLE001 - whatever is wrong with us, the stream goes on
            report_failure(error)
            self._failed = True
            self._template = None
            out = bytes(self._buffer[self._sent :]) or chunk
            self._buffer.clear()
        return out if self.edits else chunk

    def _feed(self, chunk: bytes) -> bytes:
        if self._fast_path_ready and not self._is_holding:
            output = self._fast_path.events(chunk) or self._fast_path.event(chunk)
            if output is not None:
                return output
        self._buffer += chunk
        self._has_cr = self._has_cr or b"\r" in chunk
        return self._process_blocks()

    @property
    def _is_holding(self) -> bool:
        """Whether the next bytes belong to a block that has begun."""
        return bool(self._buffer or self._after_comment or self._drop_lf)

    def finish(self) -> bytes:
        """Process a last event without its blank line; returns the remaining bytes."""
        out = b""
        if self._buffer and not self._failed:
            try:
                out = self._process_last()
            except Exception as error:  # noqa: BLE001
                report_failure(error)
                out = bytes(self._buffer[self._sent :])
            self._buffer.clear()
        self.summary.end()
        return out if self.edits else b""

    def abandon(self) -> bool:
        """Drop buffered bytes; True if the client is between two events."""
        buffered, self._buffer = self._buffer, bytearray()
        if self._failed or self._oversized:
            return False
        return not buffered or (self.edits and not self._sent)

    def _process_blocks(self) -> bytes:
        """Process all complete blocks in the buffer."""
        buffer, at = self._buffer, 0
        out: list[bytes | bytearray] = []
        if self._at_start:  # a BOM is not part of the first event
            if len(buffer) < len(BOM) and BOM.startswith(buffer):
                return b""
            self._at_start = False
            at = len(BOM) if buffer.startswith(BOM) else 0
            out.append(buffer[:at])
        if self._drop_lf and buffer:
            self._drop_lf = False
            at = int(buffer.startswith(b"\n"))
        while True:
            sent_to = self._skip_blank_lines_and_comments(at)
            out.append(buffer[max(at, self._sent) : sent_to])
            at = max(at, sent_to)
            end = self._block_end(max(at, self._searched))
            if end < 0:
                break
            out.append(self._process_block(bytes(buffer[at:end]), max(self._sent - at, 0)))
            at = self._searched = end
            self._drop_lf = self._drop_lf and at == len(buffer)  # no LF followed
        del buffer[:at]
        self._sent = max(self._sent - at, 0)
        self._searched = max(len(buffer) - 4, 0)
        if self._oversized or len(buffer) > MAX_EVENT_BYTES:
            out.append(self._pass_oversized())
        return b"".join(out)

    def _block_end(self, at: int) -> int:
        if not self._has_cr:  # leading blank lines are removed, so the first two LFs are the end
            parsed = self._buffer.find(b"\n\n", at)
            return parsed + 2 if parsed >= 0 else -1
        match = BLOCK_END.search(self._buffer, at)
        return match.end() if match else -1

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
            # A comment line that is still to end is not read again from its start with each chunk.
            at = blank.end()
            if LINE_END.search(buffer, max(at, self._searched)) is None:
                return at
            comments = COMMENTS.match(buffer, at)
            if comments is None:
                return at
            self._after_comment = True
            at = comments.end()

    def _pass_oversized(self) -> bytes:
        """Pass on a block that exceeds MAX_EVENT_BYTES, and go on to search for its end."""
        buffer = self._buffer
        out = bytes(buffer[self._sent :])
        del buffer[:-8]
        self._sent = len(buffer)
        self._searched = 0
        self._oversized = True
        self._mark_started()
        return out

    def _process_block(self, block: bytes, sent: int) -> bytes:
        """The bytes for the client of a complete block whose first `sent` bytes were sent."""
        after_comment, self._after_comment = self._after_comment, False
        if self._oversized or len(block) > MAX_EVENT_BYTES:
            self._oversized = False
            self._mark_started()
            return block[sent:]
        out = self._fast_path.event(block) if self._fast_path_ready and not after_comment else None
        if out is not None:
            return out
        out = self._process_event(block)
        if out is None:
            out = without_data(block, after_comment=after_comment)
            self._drop_lf = block.endswith(b"\r") and not out.endswith(b"\r")
        return out

    def _mark_started(self) -> None:
        """An event that is too large to parse is content, such as an image."""
        self.summary.started = self.summary.started or not self.summary.seen_done

    def _process_last(self) -> bytes:
        buffer = bytes(self._buffer)
        if self._oversized or self._sent:
            return buffer[self._sent :]
        out = self._process_event(buffer)
        return without_data(buffer, after_comment=self._after_comment) if out is None else out

    def _process_event(self, block: bytes) -> bytes | None:
        """Process one event; returns its bytes without what we asked for, or None if that is all of it."""
        parsed = parse_block(block)
        if parsed.bare_error is not None and not self.summary.seen_done:
            self.summary.error = "error"
        if parsed.data is None:
            return block
        if parsed.data.strip().startswith(b"[DONE]"):
            return self._process_done(block)
        chunk = decode(parsed.data)
        if not self.summary.seen_done:
            self._update_summary(chunk, parsed.event)
        if chunk is None or not self._strip:
            return block
        if is_usage_only(chunk):
            return None
        if parsed.start < 0 or not may_have_null_usage(chunk, parsed.data):
            return block
        return block[: parsed.start] + without_null_usage(parsed.data) + block[parsed.end :]

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
        first = not self.summary.seen_done
        if first:
            self.summary.events += 1
            self.summary.seen_done = True
            self.summary.end()
            self._fast_path_ready = False
            self._fast_path.template = None
        if first and self._before_done is not None:
            return self._before_done(self.summary) + block
        return block


def may_have_null_usage(chunk: Chunk, payload: bytes) -> bool:
    """Whether to search for null members: not in a cumulative stream, whose chunks have one `usage` each."""
    if chunk.usage is None:
        return True
    return chunk.usage is not msgspec.UNSET and (payload.count(b'"usage"') > 1 or b"\\u00" in payload)


def is_usage_only(chunk: Chunk) -> bool:
    """Whether an event carries only usage: no choices, a usage object, no error."""
    return not chunk.choices and isinstance(chunk.usage, dict) and chunk.error is None
