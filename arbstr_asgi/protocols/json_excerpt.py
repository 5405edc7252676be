"""Collects the fields of a JSON body that metering needs, in bounded memory."""

import json
from enum import IntEnum
from typing import Final

MAX_KEPT_BYTES = 64 * 1024
MAX_TEXT_BYTES = 4096  # of a text; a longer one counts as empty
MAX_CHOICES = 128  # the maximum of OpenAI; further choices are skipped
_MAX_KEY_BYTES = 128  # the longest field name has 78 when every letter is escaped


class Kind(IntEnum):
    """The kind of a container, by what fields of it are needed."""

    ARRAY = 0
    OBJECT = 1
    ROOT = 2
    CHOICES = 3
    FIRST_CHOICE = 4
    CHOICE = 5
    ERROR = 6
    GROQ = 7
    BASE_RESP = 8


NAMES: Final[dict[Kind, tuple[bytes, ...]]] = {
    Kind.ROOT: tuple(b"id model object service_tier error type code choices usage x_groq base_resp".split()),
    Kind.FIRST_CHOICE: (b"finish_reason", b"index", b"usage"),
    Kind.CHOICE: (b"finish_reason", b"index"),
    Kind.ERROR: (b"type", b"code"),
    Kind.GROQ: (b"usage",),
    Kind.BASE_RESP: (b"status_code",),
}
_OBJECT_FIELDS: Final = {Kind.ERROR: b"error", Kind.GROQ: b"x_groq", Kind.BASE_RESP: b"base_resp"}
_NESTED = {(name, b"{"): kind for kind, name in _OBJECT_FIELDS.items()} | {(b"choices", b"["): Kind.CHOICES}


class LimitExceeded(Exception):
    """The fields to keep, or the steps to find them, exceed the limit."""


def name_of(kind: Kind, key: bytes) -> bytes | None:
    """The field name that a key (without quotes) spells, if this kind of container has such a field."""
    names = NAMES.get(kind, ())
    if names and b"\\" in key and len(key) <= _MAX_KEY_BYTES:
        try:
            key = json.loads(b'"%b"' % key).encode("utf-8", "surrogatepass")
        except ValueError:  # not UTF-8
            return None
    return key if key in names else None


class FieldExtractor:
    """Receives the start and end of each field from the parser. The last value of a name is kept."""

    def __init__(self) -> None:
        self._fields: dict[bytes, bytes] = {}
        self._inner: dict[bytes, bytes] = {}  # of the current choice or other object
        self._choices: list[bytes] = []
        self._size = 0
        self._copy: bytearray | None = None  # of the current value
        self._copied = 0  # offset of its next byte in the piece
        self._copy_of = 0, b"", self._fields  # its depth, name and destination

    @property
    def full(self) -> bool:
        """Whether further choices are skipped."""
        return len(self._choices) == MAX_CHOICES

    def choice(self, byte: bytes) -> Kind | None:
        """An element of `choices` begins with `byte`; returns its kind if it has fields to extract."""
        if self.full:
            return None
        if byte == b"{":
            self._inner = {}
            return Kind.CHOICE if self._choices else Kind.FIRST_CHOICE
        self._choices.append(b"null")
        return None

    def member(self, parent: Kind, name: bytes, byte: bytes, at: int, depth: int) -> Kind | None:
        """The value of a field begins at `at` with `byte`; returns its kind if it has fields to extract."""
        fields = self._fields if parent == Kind.ROOT else self._inner
        into = _NESTED.get((name, byte))
        if into is not None:
            self._inner = {}
            self._choices = []
        elif byte == b"[" or (byte == b"{" and name != b"usage"):
            fields[name] = b"[]"  # not needed, but not null either
        else:
            self._copy, self._copied, self._copy_of = bytearray(byte), at + 1, (depth, name, fields)
        return into

    def container_ended(self, kind: Kind) -> None:
        """A container has ended."""
        if kind == Kind.CHOICES:
            self._store(self._fields, b"choices", b"[%b]" % b",".join(self._choices))
        elif kind in (Kind.FIRST_CHOICE, Kind.CHOICE):
            self._choices.append(_object(self._inner))
        elif kind in _OBJECT_FIELDS:
            self._store(self._fields, _OBJECT_FIELDS[kind], _object(self._inner))

    def value_ended(self, data: bytes, at: int, depth: int) -> None:
        """A value at this depth has ended at `at`."""
        if self._copy is not None and depth == self._copy_of[0]:
            self._copy_up_to(data, at)
            copy, self._copy = bytes(self._copy), None
            _, name, fields = self._copy_of
            self._store(fields, name, b'""' if copy.startswith(b'"') and len(copy) > MAX_TEXT_BYTES else copy)

    def read(self, data: bytes, at: int) -> None:
        """A piece has been parsed up to `at`."""
        if self._copy is not None:
            self._copy_up_to(data, at)
            self._copied = 0

    def _copy_up_to(self, data: bytes, at: int) -> None:
        assert self._copy is not None
        if self._copy.startswith(b'"'):  # a text may be long: copy just enough to exceed the limit
            at = min(at, self._copied + MAX_TEXT_BYTES + 1 - len(self._copy))
        self._copy += data[self._copied : at]
        self._copied = at
        if len(self._copy) > MAX_KEPT_BYTES:
            raise LimitExceeded

    def _store(self, fields: dict[bytes, bytes], name: bytes, value: bytes) -> None:
        fields[name] = value
        self._size += len(name) + len(value)
        if self._size > MAX_KEPT_BYTES:
            raise LimitExceeded

    def json(self) -> bytes:
        """An object of the collected fields only."""
        return _object(self._fields)


def _object(members: dict[bytes, bytes]) -> bytes:
    return b"{%b}" % b",".join(b'"%b":%b' % member for member in members.items())
