"""The few members of a JSON body from which there is something to learn, collected in bounded memory."""

import json
from enum import IntEnum
from typing import Final

MAX_KEPT_BYTES = 64 * 1024  # bytes
MAX_TEXT_BYTES = 4096  # bytes of a text; one that is longer counts as empty
MAX_CHOICES = 128  # what one may ask of OpenAI; more have no say
_MAX_KEY = 128  # bytes; the longest name of ours has 78 when every letter is an escape


class Kind(IntEnum):
    """What a container is."""

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
_NAMED: Final = {Kind.ERROR: b"error", Kind.GROQ: b"x_groq", Kind.BASE_RESP: b"base_resp"}
_FOLLOWED = {(name, b"{"): kind for kind, name in _NAMED.items()} | {(b"choices", b"["): Kind.CHOICES}


class TooMuch(Exception):
    """What would have to be kept does not fit."""


def name_of(kind: Kind, key: bytes) -> bytes | None:
    """The name that a key (without its quotes) spells, if it is one of ours in such an object."""
    names = NAMES.get(kind, ())
    if names and b"\\" in key and len(key) <= _MAX_KEY:
        try:
            key = json.loads(b'"%b"' % key).encode("utf-8", "surrogatepass")
        except ValueError:  # not UTF-8
            return None
    return key if key in names else None


class FieldExtractor:
    """Is told of each value of ours as it begins and ends. Of values of one name the last counts."""

    def __init__(self) -> None:
        self._found: dict[bytes, bytes] = {}
        self._inner: dict[bytes, bytes] = {}  # of the choice or other object at hand
        self._choices: list[bytes] = []
        self._size = 0
        self._copy: bytearray | None = None  # of the value at hand
        self._copied = 0  # where in the piece its next byte is
        self._copy_of = 0, b"", self._found  # how deep it is, its name, and where it goes

    @property
    def full(self) -> bool:
        """Whether further choices are passed over."""
        return len(self._choices) == MAX_CHOICES

    def choice(self, byte: bytes) -> Kind | None:
        """An element of `choices` begins with `byte`; how to read it, if it is to be looked into."""
        if self.full:
            return None
        if byte == b"{":
            self._inner = {}
            return Kind.CHOICE if self._choices else Kind.FIRST_CHOICE
        self._choices.append(b"null")
        return None

    def member(self, parent: Kind, name: bytes, byte: bytes, at: int, depth: int) -> Kind | None:
        """The value of a member of ours begins at `at` with `byte`; how to read it, if it is to be looked into."""
        found = self._found if parent == Kind.ROOT else self._inner
        into = _FOLLOWED.get((name, byte))
        if into is not None:
            self._inner = {}
            self._choices = []
        elif byte == b"[" or (byte == b"{" and name != b"usage"):
            found[name] = b"[]"  # nothing to learn from, but not null either
        else:
            self._copy, self._copied, self._copy_of = bytearray(byte), at + 1, (depth, name, found)
        return into

    def closed(self, kind: Kind) -> None:
        """A container has ended."""
        if kind == Kind.CHOICES:
            self._keep(self._found, b"choices", b"[%b]" % b",".join(self._choices))
        elif kind in (Kind.FIRST_CHOICE, Kind.CHOICE):
            self._choices.append(_object(self._inner))
        elif kind in _NAMED:
            self._keep(self._found, _NAMED[kind], _object(self._inner))

    def ended(self, data: bytes, at: int, depth: int) -> None:
        """A value so deep has ended at `at`."""
        if self._copy is not None and depth == self._copy_of[0]:
            self._copy_up_to(data, at)
            copy, self._copy = bytes(self._copy), None
            _, name, found = self._copy_of
            self._keep(found, name, b'""' if copy.startswith(b'"') and len(copy) > MAX_TEXT_BYTES else copy)

    def read(self, data: bytes, at: int) -> None:
        """A piece has been read up to `at`."""
        if self._copy is not None:
            self._copy_up_to(data, at)
            self._copied = 0

    def _copy_up_to(self, data: bytes, at: int) -> None:
        assert self._copy is not None
        if self._copy.startswith(b'"'):  # a text may be long: no more than tells that it is
            at = min(at, self._copied + MAX_TEXT_BYTES + 1 - len(self._copy))
        self._copy += data[self._copied : at]
        self._copied = at
        if len(self._copy) > MAX_KEPT_BYTES:
            raise TooMuch

    def _keep(self, found: dict[bytes, bytes], name: bytes, value: bytes) -> None:
        found[name] = value
        self._size += len(name) + len(value)
        if self._size > MAX_KEPT_BYTES:
            raise TooMuch

    def json(self) -> bytes:
        """The object that has only these members."""
        return _object(self._found)


def _object(members: dict[bytes, bytes]) -> bytes:
    return b"{%b}" % b",".join(b'"%b":%b' % member for member in members.items())
