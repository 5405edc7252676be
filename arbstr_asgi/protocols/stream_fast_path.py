"""The fast path of stream metering: recognises events that only carry text, without decoding them in full."""

from typing import Self

import msgspec

from arbstr_asgi.protocols.incremental_json import INSIDE
from arbstr_asgi.protocols.json_edit import without_null_usage
from arbstr_asgi.protocols.reply import ReplySummary

MAX_TEMPLATES = 4  # per stream
_PREFIX = b"data: "
_SUFFIX = b"\n\n"
_SEPARATOR = b"\\u0000"  # does not occur in normal text
_match_string = INSIDE.match
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


class _Choice(msgspec.Struct, gc=False):
    finish_reason: None = None
    usage: None = None
    index: int = -1


class _Event(msgspec.Struct, gc=False):
    """An event that carries only text; decoding any other fails."""

    choices: list[_Choice]
    usage: msgspec.UnsetType | None = msgspec.UNSET
    error: None = None
    x_groq: None = None
    base_resp: None = None
    object: str | None = None
    service_tier: str | None = None


_texts = msgspec.json.Decoder(_Texts)
_decoder = msgspec.json.Decoder(_Event)


class FastPath:
    """Handles text-only events: counts them in `summary`, and removes their null usage if `strip`."""

    def __init__(self, summary: ReplySummary, *, strip: bool) -> None:
        self._summary = summary
        self._strip = strip
        self._templates_left = MAX_TEMPLATES
        self.template: EventTemplate | None = None
        """The template of the last events."""

    def event(self, block: bytes) -> bytes | None:
        """The bytes for the client of a block that is one text-only event; None for any other."""
        output = None if self.template is None else self.template.match(block)
        if output is not None:
            self._summary.events += 1
            return output
        event = _read(block)
        if event is None or not event.choices or event.object == "error":
            return None
        open_choices = self._summary.open_choices
        if any(choice.index not in open_choices for choice in event.choices):  # such as one whose text begins
            return None
        if event.service_tier is not None and event.service_tier != self._summary.service_tier:
            return None
        self._summary.events += 1
        strip = event.usage is None and self._strip
        if self._templates_left:
            self._templates_left -= 1
            self.template = EventTemplate.create(block, strip=strip) or self.template
        return _PREFIX + without_null_usage(block[len(_PREFIX) : -len(_SUFFIX)]) + _SUFFIX if strip else block

    def events(self, chunk: bytes) -> bytes | None:
        """The bytes for the client of a chunk of several events that match the template; None for any other."""
        blocks = chunk.split(_SUFFIX)
        if self.template is None or len(blocks) < 3 or blocks.pop():
            return None
        outputs: list[bytes] = []
        for block in blocks:
            output = self.template.match(block + _SUFFIX)
            if output is None:
                return None
            outputs.append(output)
        self._summary.events += len(outputs)
        return b"".join(outputs)


def _read(block: bytes) -> _Event | None:
    if not block.startswith(b"data: {") or not block.endswith(b"}\n\n") or block.count(b"\n") != 2 or b"\r" in block:
        return None
    try:
        return _decoder.decode(block[len(_PREFIX) :])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class EventTemplate:
    """The bytes of an event around its text, and around its padding (OpenAI's `obfuscation`).

    An event that equals the template, with any JSON string content in between, has the same other members as the event
    that the template was made of, so it need not be decoded.
    """

    __slots__ = ("_edits", "_head", "_head_out", "_length", "_middle", "_middle_out", "_tail", "_tail_out")

    def __init__(self, literals: list[bytes], output_literals: list[bytes]) -> None:
        """`literals` are the bytes around the texts, `output_literals` what the client gets for each."""
        self._edits = literals != output_literals
        self._head, *middle, self._tail = literals
        self._head_out, *middle_out, self._tail_out = output_literals
        self._middle = middle[0] if middle else b""
        self._middle_out = middle_out[0] if middle else b""
        self._length = len(self._head)

    @classmethod
    def create(cls, block: bytes, *, strip: bool) -> Self | None:
        """Make a template of an event, without its null `usage` if `strip`; None where its text is ambiguous."""
        try:
            texts = _texts.decode(block[len(_PREFIX) :])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        if len(texts.choices) != 1:
            return None
        delta = texts.choices[0].delta
        values = [
            bytes(raw) for raw in (delta.content, delta.reasoning_content, delta.reasoning, texts.obfuscation) if raw
        ]
        literals = _split_around(block, [text for text in values if len(text) > 2 and text.startswith(b'"')])
        if len(literals) not in (2, 3) or _SEPARATOR in block:
            return None
        if not strip:
            return cls(literals, literals)
        whole = _SEPARATOR.join(literals)
        stripped = _PREFIX + without_null_usage(whole[len(_PREFIX) : -len(_SUFFIX)]) + _SUFFIX
        output_literals = stripped.split(_SEPARATOR)
        return cls(literals, output_literals) if len(output_literals) == len(literals) else None

    def match(self, block: bytes) -> bytes | None:
        """The bytes for the client of a block that matches the template; None for any other."""
        if not block.startswith(self._head):
            return None
        text_end = end = _match_string(block, self._length).end()  # type: ignore[union-attr]
        if self._middle:
            if not block.startswith(self._middle, text_end):
                return None
            end = _match_string(block, text_end + len(self._middle)).end()  # type: ignore[union-attr]
        if block[end:] != self._tail:
            return None
        if not self._edits:
            return block
        text = block[self._length : text_end]
        if not self._middle:
            return b"%b%b%b" % (self._head_out, text, self._tail_out)
        padding = block[text_end + len(self._middle) : end]
        return b"".join((self._head_out, text, self._middle_out, padding, self._tail_out))


def _split_around(block: bytes, texts: list[bytes]) -> list[bytes]:
    """The block without the contents of these strings, each of which must occur once; else []."""
    ranges = sorted((block.find(text) + 1, block.find(text) + len(text) - 1) for text in texts)
    if any(block.find(text) != block.rfind(text) for text in texts):
        return []
    at, literals = 0, []
    for start, end in ranges:
        literals.append(block[at:start])
        at = end
    return [*literals, block[at:]]
