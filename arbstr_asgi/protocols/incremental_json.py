"""An incremental JSON parser for large bodies: checks the syntax and extracts a few fields in bounded memory."""

import re
from enum import IntEnum

from arbstr_asgi.protocols.json_excerpt import NAMES, FieldExtractor, Kind, LimitExceeded, name_of
from arbstr_asgi.protocols.reply import Chunk, decode
from arbstr_asgi.protocols.sse import DataLines

MAX_ELEMENTS = 256  # of a run, per match
MAX_INNER_ELEMENTS = 32  # of a container inside a run
MAX_ESCAPES = 64  # of a string, per match
MAX_RUN_DEPTH = 2  # of containers inside a run; deeper patterns compile slowly
MAX_PARTIAL_TOKEN = 4096  # bytes of a number
MAX_KEY = 256  # bytes of a partial key; longer than any field name
MAX_NESTING = 900  # about the limit of the decoders
BYTES_PER_STEP = 16  # a body that needs more steps would block the event loop
STEPS_PER_PIECE = 8
SPARE_STEPS = 4096
_PLAIN = rb'[^"\\\x00-\x1f]*+'
_ESCAPE = rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_BLANKS = rb"[ \t\r\n]*+"
_NUMBER = rb"-?(?:[1-9][0-9]*+|0)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?(?=[ \t\r\n,\]}])"
_INSIDE = b"%b(?:%b%b){0,%d}" % (_PLAIN, _ESCAPE, _PLAIN, MAX_ESCAPES)
_STRING = b'"%b"' % _INSIDE
_COLON = b"%b:%b" % (_BLANKS, _BLANKS)
_SCALAR = b"(?:%b|%b|null|true|false|NaN|-?Infinity)" % (_STRING, _NUMBER)


def _items(key: bytes, value: bytes, closing: bytes) -> bytes:
    """One element or member with its comma or, as look-ahead, the end of the container."""
    return b"(?:%b%b%b(?:,%b(?!%b)|(?=%b)))" % (key, value, _BLANKS, _BLANKS, closing, closing)


def _value() -> bytes:
    """A scalar, or a container nested up to MAX_RUN_DEPTH."""
    value = _SCALAR
    for _ in range(MAX_RUN_DEPTH):
        elements, members = _items(b"", value, rb"\]"), _items(_STRING + _COLON, value, rb"\}")
        array = rb"\[%b%b{0,%d}\]" % (_BLANKS, elements, MAX_INNER_ELEMENTS)
        json_object = rb"\{%b%b{0,%d}\}" % (_BLANKS, members, MAX_INNER_ELEMENTS)
        value = b"(?:%b|%b|%b)" % (_SCALAR, array, json_object)
    return value


def _run(key: bytes, value: bytes, closing: bytes) -> re.Pattern[bytes]:
    return re.compile(b"%b{1,%d}" % (_items(key, value, closing), MAX_ELEMENTS))


def scalar_members_except(*names: bytes) -> re.Pattern[bytes]:
    """A run of scalar members, up to one of these names or a key with an escape in it."""
    return _run(b'"(?!(?:%b)")%b"%b' % (b"|".join(names), _PLAIN, _COLON), _SCALAR, rb"\}")


BLANKS = re.compile(_BLANKS)
STRING = re.compile(_STRING)
INSIDE = re.compile(_INSIDE)
"""The contents of a string, perhaps partial."""
SCALAR = re.compile(_SCALAR)
"""A value that is no container; a number only if a delimiter follows."""
PARTIAL_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
PARTIAL_SCALAR = re.compile(rb"-?(?:[0-9][-+.0-9eE]*+|[A-Za-z]{0,7})\Z")
ELEMENTS = _run(b"", _value(), rb"\]")
"""A run of elements, up to the end of the array or behind a comma."""
MEMBERS = _run(_STRING + _COLON, _value(), rb"\}")
"""A run of members, up to the end of the object or behind a comma."""


_ARRAYS = (Kind.ARRAY, Kind.CHOICES)
_MEMBERS = {kind: scalar_members_except(*names) for kind, names in NAMES.items()}


class _Next(IntEnum):
    """The token expected next."""

    VALUE = 0
    VALUE_OR_END = 1
    KEY = 2
    KEY_OR_END = 3
    COLON = 4
    COMMA_OR_END = 5
    NOTHING = 6


class _NotJson(Exception):
    pass


class IncrementalReader:
    """Parses a JSON object piece by piece. Never raises; the time for a piece is bounded by its size.

    `gave_up`: the fields to keep, or the number of tokens per byte, exceeded the limits.
    """

    def __init__(self) -> None:
        self.gave_up = False
        self._extractor: FieldExtractor | None = FieldExtractor()  # None: finished or failed
        self._stack: list[Kind] = []
        self._next = _Next.VALUE
        self._steps = SPARE_STEPS
        self._tail = b""  # a partial number, literal or escape
        self._in_string = False
        self._key: bytearray | None = None  # a partial key
        self._name: bytes | None = None  # the field whose value follows

    @property
    def is_complete(self) -> bool:
        """Whether the end of the object was parsed."""
        return self._next == _Next.NOTHING

    def feed(self, piece: bytes) -> None:
        """Parse the next piece."""
        if self._extractor is None:
            return
        data = self._tail + piece if self._tail else piece
        self._steps = min(self._steps, SPARE_STEPS) + STEPS_PER_PIECE + len(piece) // BYTES_PER_STEP
        try:
            at = self._read(self._extractor, data)
            self._extractor.read(data, at)
            self._tail = data[at:]
        except (_NotJson, LimitExceeded) as error:
            self._extractor = None
            self.gave_up = isinstance(error, LimitExceeded)

    def finish(self) -> bytes | None:
        """A document of the extracted fields; None if the body is no complete JSON object or exceeded the limits."""
        extractor, self._extractor = self._extractor, None
        return extractor.json() if extractor is not None and self._next == _Next.NOTHING else None

    def _read(self, extractor: FieldExtractor, data: bytes) -> int:
        """Parse `data`; returns the offset where it stopped: its end, or the start of a partial token."""
        at, end = 0, len(data)
        while at < end:
            if not self._in_string:
                at = BLANKS.match(data, at).end()  # type: ignore[union-attr]
                if at == end:
                    break
            self._steps -= 1
            if self._steps < 0:
                raise LimitExceeded
            before = at
            at = self._step(extractor, data, at)
            if at == before:
                break
        if end - at > MAX_PARTIAL_TOKEN:
            raise LimitExceeded
        return at

    def _step(self, extractor: FieldExtractor, data: bytes, at: int) -> int:
        """Parse one token or run; returns the offset behind it, or `at` for a partial token."""
        if self._in_string:
            return self._string(extractor, data, at)
        if self._next <= _Next.VALUE_OR_END:
            return self._value(extractor, data, at)
        if self._next <= _Next.KEY_OR_END:
            return self._member(extractor, data, at)
        byte = data[at : at + 1]
        if self._next == _Next.COLON and byte == b":":
            self._next = _Next.VALUE
        elif self._next == _Next.COMMA_OR_END and byte == b",":
            self._next = _Next.VALUE if self._stack[-1] in _ARRAYS else _Next.KEY
        elif self._next == _Next.COMMA_OR_END:
            self._close(extractor, data, at)
        else:
            raise _NotJson
        return at + 1

    def _value(self, extractor: FieldExtractor, data: bytes, at: int) -> int:
        top = self._stack[-1] if self._stack else None
        if top == Kind.ARRAY or (top == Kind.CHOICES and extractor.full):
            run = ELEMENTS.match(data, at)
            if run is not None:
                return self._after_run(data, run.end(), _Next.VALUE)
        byte = data[at : at + 1]
        if byte == b"]" and self._next == _Next.VALUE_OR_END:
            self._close(extractor, data, at)
            return at + 1
        if byte in (b"{", b"["):
            kind = self._value_begins(extractor, byte, at)
            self._open(kind or (Kind.OBJECT if byte == b"{" else Kind.ARRAY))
            return at + 1
        whole = SCALAR.match(data, at)
        if whole is not None:
            self._value_begins(extractor, byte, at)
            self._value_ended(extractor, data, whole.end())
            return whole.end()
        if byte == b'"':
            self._value_begins(extractor, byte, at)
            self._in_string = True
            return at + 1
        if PARTIAL_SCALAR.match(data, at) is None:
            raise _NotJson
        return at

    def _after_run(self, data: bytes, at: int, after_comma: _Next) -> int:
        """Set the state at the end of a run: behind a comma, or before the end of the container."""
        self._next = _Next.COMMA_OR_END if data[at : at + 1] in (b"]", b"}") else after_comma
        return at

    def _value_begins(self, extractor: FieldExtractor, byte: bytes, at: int) -> Kind | None:
        """Handle the start of a value; returns its kind if it is a container with fields to extract."""
        name, self._name = self._name, None
        if not self._stack:
            if byte != b"{":
                raise _NotJson
            return Kind.ROOT
        if self._stack[-1] == Kind.CHOICES:
            return extractor.choice(byte)
        return None if name is None else extractor.member(self._stack[-1], name, byte, at, len(self._stack))

    def _open(self, kind: Kind) -> None:
        if len(self._stack) == MAX_NESTING:
            raise _NotJson
        self._stack.append(kind)
        self._next = _Next.VALUE_OR_END if kind in _ARRAYS else _Next.KEY_OR_END

    def _close(self, extractor: FieldExtractor, data: bytes, at: int) -> None:
        kind = self._stack.pop()
        if data[at : at + 1] != (b"]" if kind in _ARRAYS else b"}"):
            raise _NotJson
        extractor.container_ended(kind)
        self._value_ended(extractor, data, at + 1)

    def _value_ended(self, extractor: FieldExtractor, data: bytes, at: int) -> None:
        """Handle the end of a value."""
        self._next = _Next.COMMA_OR_END if self._stack else _Next.NOTHING
        extractor.value_ended(data, at, len(self._stack))

    def _member(self, extractor: FieldExtractor, data: bytes, at: int) -> int:
        run = _MEMBERS.get(self._stack[-1], MEMBERS).match(data, at)
        if run is not None:
            return self._after_run(data, run.end(), _Next.KEY)
        byte = data[at : at + 1]
        if byte == b"}" and self._next == _Next.KEY_OR_END:
            self._close(extractor, data, at)
            return at + 1
        if byte != b'"':
            raise _NotJson
        whole = STRING.match(data, at)
        if whole is None:
            self._in_string = True
            self._key = bytearray()
            return at + 1
        self._key_ended(data[at + 1 : whole.end() - 1])
        return whole.end()

    def _key_ended(self, key: bytes) -> None:
        """Handle the end of a key."""
        self._next = _Next.COLON
        self._name = name_of(self._stack[-1], key)

    def _string(self, extractor: FieldExtractor, data: bytes, at: int) -> int:
        """Parse on inside a string."""
        match = INSIDE.match(data, at)
        assert match is not None
        end = match.end()
        if self._key is not None and len(self._key) <= MAX_KEY:
            self._key += data[at : min(end, at + MAX_KEY)]
        byte = data[end : end + 1]
        if byte == b'"':
            self._in_string = False
            if self._key is not None:
                key, self._key = bytes(self._key), None
                self._key_ended(key)
            else:
                self._value_ended(extractor, data, end + 1)
            return end + 1
        # The string continues in the next piece, perhaps within an escape, or has more escapes than one match takes.
        if end > at or not byte or PARTIAL_ESCAPE.match(data, end):
            return end
        raise _NotJson


class LargeEvent:
    """Parses an event incrementally that is too large to be decoded at once."""

    def __init__(self) -> None:
        self._reader = IncrementalReader()
        self.data_lines = DataLines(self._reader.feed)
        self.bytes_fed = 0

    def feed(self, piece: bytes) -> int | None:
        """Parse more of the block; returns the offset of another event without a blank line before it, else None."""
        self.bytes_fed += len(piece)
        return self.data_lines.feed(piece, lambda: self._reader.is_complete)

    def chunk(self) -> Chunk | None:
        """The extracted fields of the complete event, None where it is no JSON object or exceeded the limits."""
        document = self._reader.finish()
        return decode(document) if document else None
