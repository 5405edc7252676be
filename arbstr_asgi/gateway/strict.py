"""What of a reply is kept back until its row is durable: the bytes that would make it whole for the client."""

from arbstr_asgi.protocols.reply import ReplySummary
from arbstr_asgi.protocols.sse import BLOCK_END

DONE = b"[DONE]"
MAX_LINE_BYTES = 64  # of the line that is going out, in which the word may have begun


class StrictHold:
    """Keeps back `[DONE]` and what follows, and the newest chunk of a body that is whole with its last byte."""

    def __init__(self, *, has_length: bool, is_events: bool) -> None:
        """`has_length`: the client knows how long the body is. `is_events`: it is called an event stream."""
        self._has_length = has_length
        self._ahead = has_length or not is_events
        self._held = b""
        self._line = b""

    def push(self, out: bytes, reading: ReplySummary) -> bytes:
        """What may go of what is kept and `out`, which follows it."""
        if reading.events and not self._has_length:
            self._ahead = False
        if self._ahead and not reading.seen_done:
            if not out:
                return b""
            going, self._held = self._held, out
        else:
            data = self._held + out
            at = self._end(data, done=reading.seen_done)
            going, self._held = data[:at], data[at:]
        self._line = _last_line(self._line + going[-MAX_LINE_BYTES:])
        return going

    def flush(self) -> bytes:
        """What is kept; it may go now."""
        kept, self._held = self._held, b""
        return kept

    def _end(self, data: bytes, *, done: bool) -> int:
        """Where in `data` the line with `[DONE]` begins. Too early only delays; a word that is not found keeps all."""
        text = self._line + data
        at = text.find(DONE) if done else text.rfind(DONE)
        if at < 0:
            return 0 if done else len(data)
        if not done and BLOCK_END.search(text, at):  # somebody speaks of it
            return len(data)
        return max(at - len(_last_line(text[:at], at)) - len(self._line), 0)


def _last_line(text: bytes, limit: int = MAX_LINE_BYTES) -> bytes:
    return text[max(text.rfind(b"\n"), text.rfind(b"\r")) + 1 :][-limit:] if text else b""
