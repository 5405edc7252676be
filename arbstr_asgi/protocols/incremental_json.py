"""Reads a JSON body that is too large to be kept, as it comes, and keeps what there is to learn from it."""

import re
from enum import IntEnum

from arbstr_asgi.protocols.json_excerpt import NAMES, FieldExtractor, Kind, TooMuch, name_of
from arbstr_asgi.protocols.reply import Chunk, decode
from arbstr_asgi.protocols.sse import DataLines

MAX_ROUNDS = 256  # elements of a run, in one match
MAX_INNER_ROUNDS = 32  # elements of a container inside it
MAX_ESCAPES = 64  # of a string, in one match
DEPTH = 2  # of containers inside a run; more cost time to compile
_PLAIN = rb'[^"\\\x00-\x1f]*+'
_ESCAPE = rb'\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})'
_BLANKS = rb"[ \t\r\n]*+"
_NUMBER = rb"-?(?:[1-9][0-9]*+|0)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?(?=[ \t\r\n,\]}])"  # what follows says it is whole
MAX_PART = 4096  # bytes of a number that may come in pieces
MAX_KEY = 256  # bytes of a key that comes in pieces; no name of ours is so long
MAX_NESTING = 900  # about where the decoders give up on the whole
BYTES_A_STEP = 16  # what takes more steps of Python for its bytes would hold others up, and isn't read
STEPS_A_PIECE = 8
SPARE_STEPS = 4096


_INSIDE = b"%b(?:%b%b){0,%d}" % (_PLAIN, _ESCAPE, _PLAIN, MAX_ESCAPES)
_STRING = b'"%b"' % _INSIDE
_COLON = b"%b:%b" % (_BLANKS, _BLANKS)
_SCALAR = b"(?:%b|%b|null|true|false|NaN|-?Infinity)" % (_STRING, _NUMBER)


def _items(key: bytes, value: bytes, closing: bytes) -> bytes:
    """One element or member, and its comma or, unseen, the end of the container."""
    return b"(?:%b%b%b(?:,%b(?!%b)|(?=%b)))" % (key, value, _BLANKS, _BLANKS, closing, closing)


def _value() -> bytes:
    value = _SCALAR
    for _ in range(DEPTH):
        elements, members = _items(b"", value, rb"\]"), _items(_STRING + _COLON, value, rb"\}")
        containers = (
            rb"\[%b%b{0,%d}\]" % (_BLANKS, elements, MAX_INNER_ROUNDS),
            rb"\{%b%b{0,%d}\}"
            % (
                _BLANKS,
                members,
                MAX_INNER_ROUNDS,
            ),
        )
        value = b"(?:%b|%b|%b)" % (_SCALAR, *containers)
    return value


def _run(key: bytes, value: bytes, closing: bytes) -> re.Pattern[bytes]:
    return re.compile(b"%b{1,%d}" % (_items(key, value, closing), MAX_ROUNDS))


def plain_members_but(*names: bytes) -> re.Pattern[bytes]:
    """A run of members without containers, up to one of these names or a key with an escape in it."""
    return _run(b'"(?!(?:%b)")%b"%b' % (b"|".join(names), _PLAIN, _COLON), _SCALAR, rb"\}")


BLANKS = re.compile(_BLANKS)
STRING = re.compile(_STRING)
INSIDE = re.compile(_INSIDE)
"""The inside of a string, as far as it is there."""
SCALAR = re.compile(_SCALAR)
"""A value that is no container; a number only with what follows it."""
PART_OF_ESCAPE = re.compile(rb"\\(?:u[0-9a-fA-F]{0,3})?\Z")
PART_OF_SCALAR = re.compile(rb"-?(?:[0-9][-+.0-9eE]*+|[A-Za-z]{0,7})\Z")
ELEMENTS = _run(b"", _value(), rb"\]")
"""A run of elements, up to the array's end, or behind a comma."""
MEMBERS = _run(_STRING + _COLON, _value(), rb"\}")
"""The same of an object."""


_ARRAYS = (Kind.ARRAY, Kind.CHOICES)
_MEMBERS = {kind: plain_members_but(*names) for kind, names in NAMES.items()}


class _Next(IntEnum):
    """What may come next, and what else would end the container."""

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
    """Takes in a JSON object piece by piece. Never raises; the time a piece takes is bounded by its size.

    `gave_up` says that there is too much of what would have to be kept, or too little in too many tokens.
    """

    def __init__(self) -> None:
        self.gave_up = False
        self._excerpt: FieldExtractor | None = FieldExtractor()  # None: nothing that comes can change what is found
        self._stack: list[Kind] = []
        self._next = _Next.VALUE
        self._steps = SPARE_STEPS
        self._tail = b""  # part of a number, a literal or an escape
        self._inside = False  # a string
        self._key: bytearray | None = None  # what there is of a key, while it comes
        self._name: bytes | None = None  # the name of ours whose value comes

    @property
    def is_whole(self) -> bool:
        """Whether the object has ended."""
        return self._next == _Next.NOTHING

    def feed(self, piece: bytes) -> None:
        """Take in the next piece."""
        if self._excerpt is None:
            return
        data = self._tail + piece if self._tail else piece
        self._steps = min(self._steps, SPARE_STEPS) + STEPS_A_PIECE + len(piece) // BYTES_A_STEP
        try:
            at = self._read(self._excerpt, data)
            self._excerpt.read(data, at)
            self._tail = data[at:]
        except (_NotJson, TooMuch) as error:
            self._excerpt = None
            self.gave_up = isinstance(error, TooMuch)

    def finish(self) -> bytes | None:
        """The document; None if what came is no JSON object, is not all of it, or was too much."""
        excerpt, self._excerpt = self._excerpt, None
        return excerpt.json() if excerpt is not None and self._next == _Next.NOTHING else None

    def _read(self, excerpt: FieldExtractor, data: bytes) -> int:
        """Go through `data`; returns where it stopped: at its end, or at part of a token."""
        at, end = 0, len(data)
        while at < end:
            if not self._inside:
                at = BLANKS.match(data, at).end()  # type: ignore[union-attr]
                if at == end:
                    break
            self._steps -= 1
            if self._steps < 0:
                raise TooMuch
            before = at
            at = self._step(excerpt, data, at)
            if at == before:
                break
        if end - at > MAX_PART:
            raise TooMuch
        return at

    def _step(self, excerpt: FieldExtractor, data: bytes, at: int) -> int:
        """Read on from `at`; returns how far, which is `at` where a token goes on in the next piece."""
        if self._inside:
            return self._string(excerpt, data, at)
        if self._next <= _Next.VALUE_OR_END:
            return self._value(excerpt, data, at)
        if self._next <= _Next.KEY_OR_END:
            return self._member(excerpt, data, at)
        byte = data[at : at + 1]
        if self._next == _Next.COLON and byte == b":":
            self._next = _Next.VALUE
        elif self._next == _Next.COMMA_OR_END and byte == b",":
            self._next = _Next.VALUE if self._stack[-1] in _ARRAYS else _Next.KEY
        elif self._next == _Next.COMMA_OR_END:
            self._close(excerpt, data, at)
        else:
            raise _NotJson
        return at + 1

    def _value(self, excerpt: FieldExtractor, data: bytes, at: int) -> int:
        top = self._stack[-1] if self._stack else None
        if top == Kind.ARRAY or (top == Kind.CHOICES and excerpt.full):
            run = ELEMENTS.match(data, at)
            if run is not None:
                return self._behind(data, run.end(), _Next.VALUE)
        byte = data[at : at + 1]
        if byte == b"]" and self._next == _Next.VALUE_OR_END:
            self._close(excerpt, data, at)
            return at + 1
        if byte in (b"{", b"["):
            kind = self._begin(excerpt, byte, at)
            self._open(kind or (Kind.OBJECT if byte == b"{" else Kind.ARRAY))
            return at + 1
        whole = SCALAR.match(data, at)
        if whole is not None:
            self._begin(excerpt, byte, at)
            self._ended(excerpt, data, whole.end())
            return whole.end()
        if byte == b'"':
            self._begin(excerpt, byte, at)
            self._inside = True
            return at + 1
        if PART_OF_SCALAR.match(data, at) is None:
            raise _NotJson
        return at

    def _behind(self, data: bytes, at: int, after_comma: _Next) -> int:
        """A run has ended at `at`: behind a comma, or in front of what ends the container."""
        self._next = _Next.COMMA_OR_END if data[at : at + 1] in (b"]", b"}") else after_comma
        return at

    def _begin(self, excerpt: FieldExtractor, byte: bytes, at: int) -> Kind | None:
        """A value begins at `at` with `byte`; how to read it, if it is to be looked into."""
        name, self._name = self._name, None
        if not self._stack:
            if byte != b"{":
                raise _NotJson
            return Kind.ROOT
        if self._stack[-1] == Kind.CHOICES:
            return excerpt.choice(byte)
        return None if name is None else excerpt.member(self._stack[-1], name, byte, at, len(self._stack))

    def _open(self, kind: Kind) -> None:
        if len(self._stack) == MAX_NESTING:
            raise _NotJson
        self._stack.append(kind)
        self._next = _Next.VALUE_OR_END if kind in _ARRAYS else _Next.KEY_OR_END

    def _close(self, excerpt: FieldExtractor, data: bytes, at: int) -> None:
        kind = self._stack.pop()
        if data[at : at + 1] != (b"]" if kind in _ARRAYS else b"}"):
            raise _NotJson
        excerpt.closed(kind)
        self._ended(excerpt, data, at + 1)

    def _ended(self, excerpt: FieldExtractor, data: bytes, at: int) -> None:
        """A value has ended at `at`."""
        self._next = _Next.COMMA_OR_END if self._stack else _Next.NOTHING
        excerpt.ended(data, at, len(self._stack))

    def _member(self, excerpt: FieldExtractor, data: bytes, at: int) -> int:
        run = _MEMBERS.get(self._stack[-1], MEMBERS).match(data, at)
        if run is not None:
            return self._behind(data, run.end(), _Next.KEY)
        byte = data[at : at + 1]
        if byte == b"}" and self._next == _Next.KEY_OR_END:
            self._close(excerpt, data, at)
            return at + 1
        if byte != b'"':
            raise _NotJson
        whole = STRING.match(data, at)
        if whole is None:
            self._inside = True
            self._key = bytearray()
            return at + 1
        self._named(data[at + 1 : whole.end() - 1])
        return whole.end()

    def _named(self, key: bytes) -> None:
        """A key has ended."""
        self._next = _Next.COLON
        self._name = name_of(self._stack[-1], key)

    def _string(self, excerpt: FieldExtractor, data: bytes, at: int) -> int:
        """Read on inside a string."""
        found = INSIDE.match(data, at)
        assert found is not None
        end = found.end()
        if self._key is not None and len(self._key) <= MAX_KEY:
            self._key += data[at : min(end, at + MAX_KEY)]
        byte = data[end : end + 1]
        if byte == b'"':
            self._inside = False
            if self._key is not None:
                key, self._key = bytes(self._key), None
                self._named(key)
            else:
                self._ended(excerpt, data, end + 1)
            return end + 1
        # It goes on in the next piece, within an escape perhaps, or has more escapes than one match takes.
        if end > at or not byte or PART_OF_ESCAPE.match(data, end):
            return end
        raise _NotJson


class LargeEvent:
    """Reads an event that is too large to be decoded at once, as it comes."""

    def __init__(self) -> None:
        self._reader = IncrementalReader()
        self.lines = DataLines(self._reader.feed)
        self.fed = 0

    def feed(self, piece: bytes) -> int | None:
        """Take in more of the block; where another event begins in it without a blank line, its place in the block."""
        self.fed += len(piece)
        return self.lines.feed(piece, lambda: self._reader.is_whole)

    def chunk(self) -> Chunk | None:
        """What there is to learn from the event, its block being at its end."""
        document = self._reader.finish()
        return decode(document) if document else None
