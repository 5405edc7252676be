"""Tells events with nothing to learn, as nearly all are, from the rest at little cost."""

from typing import Self

import msgspec

from arbstr_asgi.protocols.incremental_json import INSIDE
from arbstr_asgi.protocols.json_edit import without_null_usage
from arbstr_asgi.protocols.reply import ReplySummary

_MARK = b"\\u0000"  # a text that hardly anybody writes
MAX_LESSONS = 4  # templates of one stream, whose events may differ in more than their text
END = b"\n\n"


_START, _END = b"data: ", b"\n\n"

_RawText = msgspec.Raw | msgspec.UnsetType


class _Delta(msgspec.Struct, gc=False):
    content: _RawText = msgspec.UNSET
    reasoning_content: _RawText = msgspec.UNSET
    reasoning: _RawText = msgspec.UNSET


class _TextChoice(msgspec.Struct, gc=False):
    delta: _Delta


class _Texts(msgspec.Struct, gc=False):
    choices: list[_TextChoice]
    obfuscation: _RawText = msgspec.UNSET


_texts = msgspec.json.Decoder(_Texts)
_inside = INSIDE.match


class EventTemplate:
    """The bytes of an event around its text, and around its padding (OpenAI's `obfuscation`) if it has some.

    Whatever stands between them, as long as it is the inside of a JSON string, leaves the event's other members what
    they were: who has read the first of these events has read them all.
    """

    __slots__ = ("_behind", "_behind_out", "_edits", "_head", "_head_out", "_length", "_middle", "_middle_out")

    def __init__(self, literals: list[bytes], out: list[bytes]) -> None:
        """`literals` are what an event has around its texts, `out` what the client gets of each."""
        self._edits = literals != out
        self._head, *middle, self._behind = literals
        self._head_out, *middle_out, self._behind_out = out
        self._middle = middle[0] if middle else b""
        self._middle_out = middle_out[0] if middle else b""
        self._length = len(self._head)

    @classmethod
    def create(cls, block: bytes, *, strip: bool) -> Self | None:
        """Made of an event, without its null `usage` if `strip`; None where its text can't be told from the rest."""
        try:
            texts = _texts.decode(block[len(_START) :])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if len(texts.choices) != 1:
            return None
        delta = texts.choices[0].delta
        said = [
            bytes(raw) for raw in (delta.content, delta.reasoning_content, delta.reasoning, texts.obfuscation) if raw
        ]
        literals = _around(block, [text for text in said if len(text) > 2 and text.startswith(b'"')])
        if len(literals) not in (2, 3) or _MARK in block:
            return None
        if not strip:
            return cls(literals, literals)
        whole = _MARK.join(literals)
        stripped = _START + without_null_usage(whole[len(_START) : -len(_END)]) + _END
        out = stripped.split(_MARK)
        return cls(literals, out) if len(out) == len(literals) else None

    def match(self, block: bytes) -> bytes | None:
        """What the client gets of a block that differs in its text alone; None for any other."""
        if not block.startswith(self._head):
            return None
        first = block_at = _inside(block, self._length).end()  # type: ignore[union-attr]
        if self._middle:
            if not block.startswith(self._middle, first):
                return None
            block_at = _inside(block, first + len(self._middle)).end()  # type: ignore[union-attr]
        if block[block_at:] != self._behind:
            return None
        if not self._edits:
            return block
        text = block[self._length : first]
        if not self._middle:
            return b"%b%b%b" % (self._head_out, text, self._behind_out)
        padding = block[first + len(self._middle) : block_at]
        return b"".join((self._head_out, text, self._middle_out, padding, self._behind_out))


def _around(block: bytes, texts: list[bytes]) -> list[bytes]:
    """The block without the insides of these strings, each of which must stand in it once; else []."""
    places = sorted((block.find(text) + 1, block.find(text) + len(text) - 1) for text in texts)
    if any(block.find(text) != block.rfind(text) for text in texts):
        return []
    at, literals = 0, []
    for start, end in places:
        literals.append(block[at:start])
        at = end
    return [*literals, block[at:]]


class _Choice(msgspec.Struct, gc=False):
    finish_reason: None = None
    usage: None = None
    index: int = -1


class _Event(msgspec.Struct, gc=False):
    """An event with nothing in it to learn; any other fails to decode."""

    choices: list[_Choice]
    usage: msgspec.UnsetType | None = msgspec.UNSET
    error: None = None
    x_groq: None = None
    base_resp: None = None
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
        open_choices = self._reading.open_choices
        if any(choice.index not in open_choices for choice in event.choices):  # one that begins to speak, say
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
