"""Tells events with nothing to learn, as nearly all are, from the rest at little cost."""

import msgspec

from arbstr_asgi.metering.reading import ReplySummary
from arbstr_asgi.metering.stripping import without_null_usage
from arbstr_asgi.metering.template import EventTemplate

MAX_LESSONS = 4  # templates of one stream, whose events may differ in more than their text
END = b"\n\n"


class _Choice(msgspec.Struct, gc=False):
    finish_reason: None = None
    usage: None = None


class _Event(msgspec.Struct, gc=False):
    """An event with nothing in it to learn; any other fails to decode."""

    choices: list[_Choice]
    usage: msgspec.UnsetType | None = msgspec.UNSET
    error: None = None
    x_groq: None = None
    object: str | None = None
    service_tier: str | None = None


_decoder = msgspec.json.Decoder(_Event)


class FastPath:
    """Reads lean events: `reading` counts them, and they lose their null usage if `strip`."""

    def __init__(self, reading: ReplySummary, *, strip: bool) -> None:
        self._reading = reading
        self._strip = strip
        self._lessons = MAX_LESSONS
        self.template: EventTemplate | None = None
        """What the last ones looked like."""

    def event(self, block: bytes) -> bytes | None:
        """What the client gets of a block that is one lean event; None for any other."""
        usual = None if self.template is None else self.template.match(block)
        if usual is not None:
            self._reading.events += 1
            return usual
        event = _read(block)
        if event is None or not event.choices or event.object == "error":
            return None
        if event.service_tier is not None and event.service_tier != self._reading.service_tier:
            return None
        self._reading.events += 1
        strip = event.usage is None and self._strip
        if self._lessons:
            self._lessons -= 1
            self.template = EventTemplate.create(block, strip=strip) or self.template
        return b"data: " + without_null_usage(block[6:-2]) + END if strip else block

    def events(self, chunk: bytes) -> bytes | None:
        """What the client gets of a chunk that is several events after the template; None for any other."""
        blocks = chunk.split(END)
        if self.template is None or len(blocks) < 3 or blocks.pop():
            return None
        found: list[bytes] = []
        for block in blocks:
            usual = self.template.match(block + END)
            if usual is None:
                return None
            found.append(usual)
        self._reading.events += len(found)
        return b"".join(found)


def _read(block: bytes) -> _Event | None:
    if not block.startswith(b"data: {") or not block.endswith(b"}\n\n") or block.count(b"\n") != 2 or b"\r" in block:
        return None
    try:
        return _decoder.decode(block[6:])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
